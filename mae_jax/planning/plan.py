"""Plans a run: its parameters, memory, operations, and how long it takes on a chip.

All numbers come from shapes: nothing is allocated or compiled, and of the data only the number of
examples and classes is read.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import AbstractMesh, Mesh

from mae_jax.config.data import make_source_of
from mae_jax.config.detection_data import has_instances, train_shapes
from mae_jax.config.length import Length, make_learning_rate, make_length
from mae_jax.config.model import image_size, make_architecture
from mae_jax.config.pairs import has_masks
from mae_jax.config.recipe import choose
from mae_jax.data.sources.synthetic import IMAGENET_EXAMPLES
from mae_jax.errors import UserError
from mae_jax.experiment.run import EVALUATIONS
from mae_jax.experiment.setup import check_batch, check_fields
from mae_jax.planning.memory import Memory, count_memory, with_blocks
from mae_jax.runtime.chips import Chip, usable_share
from mae_jax.tasks import make_task
from mae_jax.training import sharding as mesh_lib
from mae_jax.training.optimizer import split_params
from mae_jax.training.state import TrainState, abstract_state, make_step
from mae_jax.training.task import Batch, Task

GIB = 2**30
IMAGENET_CLASSES = 1000
MIN_ROWS = 8
"""Fewest images of a micro-batch on one device that keep it busy, not waiting for its memory."""


class Data(NamedTuple):
    """Describes the training data, as far as a plan depends on it."""

    examples: int
    num_classes: int
    problem: str = ''
    """Why the data set could not be read; empty if it could."""


class Plan(NamedTuple):
    """Describes what a run needs, independent of the chips."""

    parameters: dict[str, int]
    """'encoder', 'decoder' or 'head', ... -> number of its parameters."""
    trained: int
    """Number of parameters that are trained."""
    mesh: AbstractMesh
    batch_size: int
    accumulate: int
    remat: str
    length: Length
    memory: Memory
    product_flops: float
    """Floating-point operations of a step in matrix products, as MFU counts them."""
    xla_flops: float
    """All floating-point operations by XLA's count, with rematerialisation and the optimiser."""

    @property
    def rows(self) -> int:
        """Returns the number of images of a micro-batch on one device."""
        return self.batch_size // (self.mesh.size * self.accumulate)


class Run(NamedTuple):
    """Holds what a run consists of on a mesh, as far as its step depends on it."""

    config: ml_collections.ConfigDict
    """Nothing in it is left to choose."""
    mesh: Mesh | AbstractMesh
    task: Task
    length: Length
    optimizer: optax.GradientTransformation

    @property
    def state(self) -> TrainState:
        """Returns shapes and shardings of the state."""
        return abstract_state(self.task, self.optimizer, self.mesh, ema_decay=self.task.ema_decay)


class Speed(NamedTuple):
    """Holds how fast a plan runs on a chip."""

    step_seconds: float
    images_per_second: float
    days: float


def find_data(config: ml_collections.ConfigDict, examples: int | None = None) -> Data:
    """Returns the size of a config's training data.

    `examples` decides if it is given, else the data set; if that cannot be read, ImageNet's size.
    """
    classes = config.get('num_classes')
    if examples is not None and ('num_classes' not in config or classes):
        return Data(examples, classes or 0)
    try:
        source = make_source_of(config, config.dataset.train_split)
    except UserError as error:
        return Data(examples or IMAGENET_EXAMPLES, classes or IMAGENET_CLASSES, str(error))
    return Data(examples or len(source), source.num_classes)


def make_run(config: ml_collections.ConfigDict, mesh: Mesh | AbstractMesh, data: Data) -> Run:
    """Makes the parts of a run on a mesh, as an accelerator would choose what is unset.

    Raises:
      UserError: a field does not work, at all or on that mesh.
    """
    check_fields(config)
    width = make_architecture(config.model)['width']
    config = choose(config, examples=data.examples, width=width, devices=mesh.size)
    if config.model.dtype == 'auto':
        config.model.dtype = 'bfloat16'
    check_batch(config, mesh)
    task = make_task(config, SimpleNamespace(num_classes=data.num_classes))
    length = make_length(config, data.examples)
    optimizer = task.make_optimizer(config.optimizer, make_learning_rate(config, length))
    return Run(config, mesh, task, length, optimizer)


def make_plan(config: ml_collections.ConfigDict, devices: int, data: Data) -> Plan:
    """Plans the run of a config on a number of devices.

    Raises:
      UserError: a field does not work, at all or on that number of devices.
    """
    if data.examples < 1 or devices < 1:
        raise UserError(f'{data.examples} examples on {devices} devices: give at least 1 of each.')
    if config.task in EVALUATIONS:
        raise UserError(f"task='{config.task}' trains nothing: there is nothing to plan.")
    run = make_run(config, mesh_lib.planned_mesh(devices, config.mesh.fsdp), data)
    config, task, state = run.config, run.task, run.state
    batch, accumulate = loaded_batch(config, task), task.micro_batches(config)
    return Plan(
        parameters={name: count_elements(tree) for name, tree in state.params.items()},
        trained=count_elements(split_params(state.params, task.is_trained)[0]),
        mesh=run.mesh,
        batch_size=config.batch_size,
        accumulate=accumulate,
        remat=with_blocks(task.model).remat,
        length=run.length,
        memory=count_memory(task, state, batch, run.mesh, accumulate),
        product_flops=task.flops_per_image() * config.batch_size,
        xla_flops=count_xla_flops(task, run.optimizer, state, batch),
    )


def loaded_batch(config: ml_collections.ConfigDict, task: Task) -> Batch:
    """Returns the shapes of a global batch as it is loaded: 8-bit images, or cached features."""
    dataset, rows = config.dataset, config.batch_size
    shapes = {'label': jax.ShapeDtypeStruct((rows,), jnp.int32)}
    if task.caches_features:
        return shapes | {'image': jax.ShapeDtypeStruct((rows, task.model.width), jnp.float32)}
    if dataset.get('resize') == 'device':
        shape = (rows // dataset.repeats, dataset.canvas, dataset.canvas, dataset.channels)
        shapes['box'] = jax.ShapeDtypeStruct((rows, 5), jnp.int32)
        return shapes | {'canvas': jax.ShapeDtypeStruct(shape, jnp.uint8)}
    size = image_size(config)
    if has_instances(config):
        shapes |= {name: jax.ShapeDtypeStruct(*x) for name, x in train_shapes(config).items()}
    if has_masks(config):
        shapes['mask'] = jax.ShapeDtypeStruct((rows, *size), jnp.uint8)
    return shapes | {'image': jax.ShapeDtypeStruct((rows, *size, dataset.channels), jnp.uint8)}


def count_xla_flops(
    task: Task,
    tx: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
) -> float:
    """Returns XLA's count of a step's operations, of the program before it is optimised.

    XLA counts the body of a loop once, so the program must have none: one micro-batch is the whole
    batch, and blocks are not scanned. It runs on the CPU backend, since others count only compiled
    programs.
    """
    task = task.without_loops()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    with jax.default_device(jax.devices('cpu')[0]):
        step = jax.jit(make_step(task, tx, seed=0, ema_decay=task.ema_decay))
        return step.lower(shapes, batch).cost_analysis()['flops']


def check_mfu(mfu: float) -> None:
    """Raises a UserError unless `mfu` is above 0 and at most 1."""
    if not 0 < mfu <= 1:
        raise UserError(f'--mfu {mfu} must be above 0 and at most 1: a share of the peak.')


def estimate_speed(plan: Plan, chip: Chip, mfu: float) -> Speed:
    """Returns the speed at a share `mfu` of the chips' bf16 peak, as metrics.jsonl counts it."""
    seconds = plan.product_flops / (plan.mesh.size * chip.flops * mfu)
    days = plan.length.num_steps * seconds / 86400
    return Speed(seconds, plan.batch_size / seconds, days)


def usable_bytes(chip: Chip) -> float:
    """Returns the bytes of a chip's memory that a run can use."""
    return usable_share(chip) * chip.memory * GIB


def fits(plan: Plan, chip: Chip) -> bool:
    """Returns whether the chip has enough memory."""
    return plan.memory.total <= usable_bytes(chip)


def find_change(plan: Plan, chip: Chip) -> tuple[int, int, float] | None:
    """Finds the smallest `mesh.fsdp`, then `optimizer.accumulate`, with which a plan about fits.

    Returns:
      (`mesh.fsdp`, `optimizer.accumulate`, bytes of a device); None if no such change is enough.
    """
    memory, current, images = plan.memory, plan.mesh.shape['fsdp'], plan.rows * plan.accumulate
    most = max(images // MIN_ROWS, plan.accumulate)
    for fsdp in range(current, plan.mesh.size + 1, current):
        for accumulate in range(plan.accumulate, most + 1):
            if plan.mesh.size % fsdp or images % accumulate:
                continue
            sums = 2 if accumulate > plan.accumulate == 1 else 1
            state = memory.parameters + memory.gradients * sums
            copies = memory.weight_copies
            if fsdp > 1 and not copies:
                copies = memory.parameters  # gathered
            activations = memory.activations * plan.accumulate / accumulate
            needed = state * current / fsdp + memory.optimizer_state  # split over all devices
            needed += copies + memory.batch + activations
            if needed <= usable_bytes(chip):
                return fsdp, accumulate, needed
    return None


def count_elements(tree: Any) -> int:
    """Returns the number of elements in all arrays of a tree."""
    return sum(array.size for array in jax.tree.leaves(tree))
