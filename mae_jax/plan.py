"""What a run needs of a machine that is not here: memory, operations, days.

Everything comes from shapes: nothing is allocated, compiled or read but the number of examples.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.extend.core import Literal
from jax.sharding import AbstractMesh

from mae_jax import build
from mae_jax.build import Length
from mae_jax.build_task import image_size, make_task
from mae_jax.data.sources import IMAGENET_EXAMPLES
from mae_jax.errors import UserError
from mae_jax.tasks.task import Batch, Task
from mae_jax.training import mesh as mesh_lib
from mae_jax.training.chips import Chip
from mae_jax.training.optimizer import merge_params, split_params
from mae_jax.training.state import TrainState, abstract_state, make_step

GIB = 2**30
IMAGENET_CLASSES = 1000
FILL = 0.9
"""Share of a device's memory that a run may plan with: the rest is XLA's and the system's."""


class Data(NamedTuple):
    """What a plan has to know of the training data."""

    examples: int
    num_classes: int
    problem: str = ''
    """Why the data set could not be read, where it could not."""


class Memory(NamedTuple):
    """Bytes of one device while it computes a step."""

    parameters: int
    optimizer_state: int
    """With the average of the parameters, where one is kept, and running statistics."""
    gradients: int
    batch: int
    """As loaded, and as prepared."""
    weight_copies: int
    """Kept for the backward pass: weights in bfloat16, gathered from other devices or stacked."""
    activations: int
    """Kept for the backward pass, of one micro-batch: an estimate, see `Kept`."""

    @property
    def total(self) -> int:
        return sum(self)


class Plan(NamedTuple):
    """What a run needs, whatever the chips."""

    parameters: dict[str, int]
    """'encoder', 'decoder' or 'head', ...: how many each has."""
    trained: int
    """How many of them learn."""
    mesh: AbstractMesh
    batch_size: int
    accumulate: int
    length: Length
    memory: Memory
    product_flops: float
    """Floating-point operations of a step in matrix products: what MFU counts."""
    xla_flops: float
    """All of them, by XLA, what is computed again and the optimiser included."""

    @property
    def rows(self) -> int:
        """Images that a device holds of a micro-batch."""
        return self.batch_size // (self.mesh.size * self.accumulate)


class Speed(NamedTuple):
    """How fast a plan is on a chip."""

    step_seconds: float
    images_per_second: float
    days: float


def find_data(config: ml_collections.ConfigDict, examples: int | None = None) -> Data:
    """The size of a config's training data: as given, else as found, else ImageNet's."""
    classes = config.get('num_classes')
    if examples is not None and (config.task == 'pretrain' or classes):
        return Data(examples, classes or 0)
    try:
        source = build.make_source_of(config, config.dataset.train_split)
    except UserError as error:
        return Data(examples or IMAGENET_EXAMPLES, classes or IMAGENET_CLASSES, str(error))
    return Data(examples or len(source), source.num_classes)


def make_plan(config: ml_collections.ConfigDict, devices: int, data: Data) -> Plan:
    """Plans the run of a config on so many devices.

    Raises:
      UserError: a field does not work, on so many devices or at all.
    """
    if data.examples < 1 or devices < 1:
        raise UserError(f'{data.examples} examples on {devices} devices: give at least 1 of each.')
    if config.task == 'knn':
        raise UserError("task='knn' trains nothing: there is nothing to plan.")
    build.check_fields(config)
    mesh = mesh_lib.planned_mesh(devices, config.mesh.fsdp)
    mesh_lib.check_batch(config.batch_size, mesh, config.optimizer.accumulate)
    task = make_task(config, SimpleNamespace(num_classes=data.num_classes))
    length = build.make_length(config, data.examples)
    tx, _ = build.make_tx(config, length)
    state = abstract_state(task, tx, mesh, ema_decay=config.get('ema_decay'))
    batch, accumulate = loaded_batch(config, task), build.step_accumulate(config)
    return Plan(
        parameters={name: count(tree) for name, tree in state.params.items()},
        trained=count(split_params(state.params, task.is_trained)[0]),
        mesh=mesh,
        batch_size=config.batch_size,
        accumulate=accumulate,
        length=length,
        memory=count_memory(task, state, batch, mesh, accumulate),
        product_flops=task.flops_per_image() * config.batch_size,
        xla_flops=count_xla_flops(task, tx, state, batch, config.get('ema_decay')),
    )


def loaded_batch(config: ml_collections.ConfigDict, task: Task) -> Batch:
    """Shapes of a global batch as the loader gives it: 8-bit images, or cached features."""
    if config.get('cache_features'):
        image = jax.ShapeDtypeStruct((config.batch_size, task.model.width), jnp.float32)
    else:
        shape = (config.batch_size, *image_size(config), config.dataset.channels)
        image = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return {'image': image, 'label': jax.ShapeDtypeStruct((config.batch_size,), jnp.int32)}


def count_memory(
    task: Task, state: TrainState, batch: Batch, mesh: AbstractMesh, accumulate: int = 1
) -> Memory:
    """Bytes of one device, from the shapes of a global batch; all is as if held at once."""
    device = share(batch, mesh.size), share(prepared(task, batch), mesh.size)
    scan, fsdp = task.model.scan, mesh.shape['fsdp']
    kept = kept_bytes(task, batch, mesh.size * accumulate)
    if scan:  # every device stacks its own shards
        copies = kept.weight_copies // fsdp
    else:  # what is not all its own it gathers, and keeps: XLA does not gather it twice
        copies = kept.weight_copies + (kept.weights if fsdp > 1 else 0)
    # A copy more for their sum over micro-batches, and one as they come out of a loop over blocks.
    gradients = 1 + (accumulate > 1) + scan
    trained, _ = split_params(state.params, task.is_trained)
    return Memory(
        parameters=device_bytes(state.params),
        optimizer_state=device_bytes((state.opt_state, state.model_state, state.ema)),
        gradients=gradients * device_bytes(trained),
        batch=device_bytes(device),
        weight_copies=copies,
        activations=kept.activations + recomputed_bytes(task, batch, mesh.size * accumulate),
    )


class Kept(NamedTuple):
    """Bytes that autodiff keeps for the backward pass, before XLA fuses anything."""

    activations: int
    """What depends on images."""
    weight_copies: int
    """Made of weights alone: cast to another dtype, stacked for a scan."""
    weights: int
    """Weights as they are: no bytes of their own on a device that has the whole of them."""


def kept_bytes(task: Task, batch: Batch, parts: int) -> Kept:
    """What is kept of one of so many parts of a batch: the residuals of `jax.vjp` of the loss."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, model_state = jax.eval_shape(task.init, key)
    trained, frozen = split_params(params, task.is_trained)
    rows = share(prepared(task, batch), parts)

    def residuals(rows, trained, frozen, model_state, key):
        def loss(trained):
            return task.loss(merge_params(trained, frozen), model_state, rows, key)[0]

        return jax.tree.leaves(jax.vjp(loss, trained)[1])

    jaxpr = jax.make_jaxpr(residuals)(rows, trained, frozen, model_state, key).jaxpr
    given = {*jaxpr.invars, *jaxpr.constvars}
    of_images = set(jaxpr.invars[: len(rows)])
    for equation in jaxpr.eqns:
        if not of_images.isdisjoint(_variables(equation.invars)):
            of_images.update(equation.outvars)
    kept = _variables(jaxpr.outvars)
    sets = kept & of_images - given, kept - of_images - given, kept & given - of_images
    return Kept(*(sum(v.aval.size * v.aval.dtype.itemsize for v in found) for found in sets))


def recomputed_bytes(task: Task, batch: Batch, parts: int) -> int:
    """What the backward pass holds of the block it computes again, at most."""
    if task.model.remat == 'none':
        return 0
    options = dict(remat='none', scan=False)
    if hasattr(task.model, 'frozen_blocks'):
        options['frozen_blocks'] = 0
    ones = {name: 1 for name in ('depth', 'decoder_depth') if getattr(task.model, name, 0)}

    def kept(sizes: Mapping[str, int]) -> int:
        model = task.model.clone(**options | sizes)
        return kept_bytes(dataclasses.replace(task, model=model), batch, parts).activations

    return max(kept(ones | {name: 2}) for name in ones) - kept(ones)


def count_xla_flops(
    task: Task,
    tx: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
    ema_decay: float | None = None,
) -> float:
    """XLA's count for a step, of the program before it is optimised, which is not compiled.

    It counts a loop's body once, so that there must be none: micro-batches are taken together and
    blocks apart. Other backends count compiled programs alone, hence the CPU's.
    """
    options = {'micro_batches': 1} if hasattr(task, 'micro_batches') else {}
    task = dataclasses.replace(task, model=task.model.clone(scan=False), **options)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    with jax.default_device(jax.devices('cpu')[0]):
        step = jax.jit(make_step(task, tx, seed=0, ema_decay=ema_decay))
        return step.lower(shapes, batch).cost_analysis()['flops']


def check_mfu(mfu: float) -> None:
    """Raises a UserError unless `mfu` is a share."""
    if not 0 < mfu <= 1:
        raise UserError(f'--mfu {mfu} must be above 0 and at most 1: a share of the peak.')


def estimate_speed(plan: Plan, chip: Chip, mfu: float) -> Speed:
    """At a share `mfu` of the chips' bf16 peak, as the console and metrics.jsonl count it."""
    seconds = plan.product_flops / (plan.mesh.size * chip.flops * mfu)
    days = plan.length.num_steps * seconds / 86400
    return Speed(seconds, plan.batch_size / seconds, days)


def fits(plan: Plan, chip: Chip) -> bool:
    """Whether the chip has memory enough."""
    return plan.memory.total <= FILL * chip.memory * GIB


def find_change(plan: Plan, chip: Chip) -> tuple[int, int, float] | None:
    """The least `mesh.fsdp`, then the least `optimizer.accumulate`, by which it would about fit.

    Returns:
      The two and the bytes of a device; None where no such change is enough.
    """
    memory, fsdp_now, images = plan.memory, plan.mesh.shape['fsdp'], plan.rows * plan.accumulate
    copies = memory.weight_copies or memory.parameters * fsdp_now  # gathered once there is fsdp
    for fsdp in range(fsdp_now, plan.mesh.size + 1, fsdp_now):
        for accumulate in range(plan.accumulate, images + 1):
            if plan.mesh.size % fsdp or images % accumulate:
                continue
            sums = 2 if accumulate > 1 and plan.accumulate == 1 else 1
            state = memory.parameters + memory.optimizer_state + memory.gradients * sums
            needed = state * fsdp_now / fsdp + memory.batch
            needed += memory.activations * plan.accumulate / accumulate
            needed += memory.weight_copies if fsdp == 1 else copies
            if needed <= FILL * chip.memory * GIB:
                return fsdp, accumulate, needed
    return None


def share(batch: Batch, parts: int) -> Batch:
    """Shapes of one of so many equal parts of a batch."""
    return {
        name: jax.ShapeDtypeStruct((rows.shape[0] // parts, *rows.shape[1:]), rows.dtype)
        for name, rows in batch.items()
    }


def prepared(task: Task, batch: Batch) -> Batch:
    """Shapes of the batch that the loss is given."""
    return jax.eval_shape(task.prepare, batch, jax.eval_shape(lambda: jax.random.key(0)))


def count(tree: Any) -> int:
    """Numbers in all arrays of a tree."""
    return sum(array.size for array in jax.tree.leaves(tree))


def device_bytes(tree: Any) -> int:
    """Bytes of one device's shards; of the whole where an array has no sharding."""

    def shape(array: jax.ShapeDtypeStruct) -> tuple[int, ...]:
        return array.sharding.shard_shape(array.shape) if array.sharding else array.shape

    return sum(math.prod(shape(x)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _variables(atoms: Sequence[Any]) -> set[Any]:
    return {atom for atom in atoms if not isinstance(atom, Literal)}
