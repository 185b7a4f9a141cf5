"""What a run needs of a machine that is not here: memory, operations, days.

All comes from shapes: nothing is allocated or compiled, and of data only their number is read.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import AbstractMesh

from mae_jax.config.data import make_source_of
from mae_jax.config.length import Length, make_learning_rate, make_length
from mae_jax.config.model import image_size
from mae_jax.data.sources.synthetic import IMAGENET_EXAMPLES
from mae_jax.errors import UserError
from mae_jax.experiment.run import EVALUATIONS
from mae_jax.experiment.setup import check_batch, check_fields
from mae_jax.planning.memory import Memory, count_memory
from mae_jax.runtime.chips import Chip
from mae_jax.tasks import make_task
from mae_jax.training import sharding as mesh_lib
from mae_jax.training.optimizer import split_params
from mae_jax.training.state import TrainState, abstract_state, make_step
from mae_jax.training.task import Batch, Task

GIB = 2**30
IMAGENET_CLASSES = 1000
FILL = 0.9
"""Share of a device's memory that a run may plan with: the rest is XLA's and the system's."""
MIN_ROWS = 8
"""Images of a micro-batch that a device should have at least, not to wait for its memory."""


class Data(NamedTuple):
    """What a plan has to know of the training data."""

    examples: int
    num_classes: int
    problem: str = ''
    """Why the data set could not be read, where it could not."""


class Plan(NamedTuple):
    """What a run needs, whatever the chips."""

    parameters: dict[str, int]
    """'encoder', 'decoder' or 'head', ...: how many each has."""
    trained: int
    """How many of them learn."""
    mesh: AbstractMesh
    batch_size: int
    accumulate: int
    remat: str
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
    if examples is not None and ('num_classes' not in config or classes):
        return Data(examples, classes or 0)
    try:
        source = make_source_of(config, config.dataset.train_split)
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
    if config.task in EVALUATIONS:
        raise UserError(f"task='{config.task}' trains nothing: there is nothing to plan.")
    check_fields(config)
    mesh = mesh_lib.planned_mesh(devices, config.mesh.fsdp)
    check_batch(config, mesh)
    task = make_task(config, SimpleNamespace(num_classes=data.num_classes))
    length = make_length(config, data.examples)
    tx = task.make_optimizer(config.optimizer, make_learning_rate(config, length))
    state = abstract_state(task, tx, mesh, ema_decay=task.ema_decay)
    batch, accumulate = loaded_batch(config, task), task.micro_batches(config)
    return Plan(
        parameters={name: count(tree) for name, tree in state.params.items()},
        trained=count(split_params(state.params, task.is_trained)[0]),
        mesh=mesh,
        batch_size=config.batch_size,
        accumulate=accumulate,
        remat=task.model.remat,
        length=length,
        memory=count_memory(task, state, batch, mesh, accumulate),
        product_flops=task.flops_per_image() * config.batch_size,
        xla_flops=count_xla_flops(task, tx, state, batch),
    )


def loaded_batch(config: ml_collections.ConfigDict, task: Task) -> Batch:
    """Shapes of a global batch as the loader gives it: 8-bit images, or cached features."""
    dataset, rows = config.dataset, config.batch_size
    shapes = {'label': jax.ShapeDtypeStruct((rows,), jnp.int32)}
    if task.caches_features:
        return shapes | {'image': jax.ShapeDtypeStruct((rows, task.model.width), jnp.float32)}
    if dataset.resize == 'device':
        shape = (rows // dataset.repeats, dataset.canvas, dataset.canvas, dataset.channels)
        shapes['box'] = jax.ShapeDtypeStruct((rows, 5), jnp.int32)
        return shapes | {'canvas': jax.ShapeDtypeStruct(shape, jnp.uint8)}
    shape = (rows, *image_size(config), dataset.channels)
    return shapes | {'image': jax.ShapeDtypeStruct(shape, jnp.uint8)}


def count_xla_flops(
    task: Task,
    tx: optax.GradientTransformation,
    state: TrainState,
    batch: Batch,
) -> float:
    """XLA's count for a step, of the program before it is optimised, which is not compiled.

    It counts a loop's body once, so that there must be none: micro-batches are taken together and
    blocks apart. Other backends count compiled programs alone, hence the CPU's.
    """
    task = task.without_loops()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    with jax.default_device(jax.devices('cpu')[0]):
        step = jax.jit(make_step(task, tx, seed=0, ema_decay=task.ema_decay))
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
    memory, now, images = plan.memory, plan.mesh.shape['fsdp'], plan.rows * plan.accumulate
    most = max(images // MIN_ROWS, plan.accumulate)
    for fsdp in range(now, plan.mesh.size + 1, now):
        for accumulate in range(plan.accumulate, most + 1):
            if plan.mesh.size % fsdp or images % accumulate:
                continue
            sums = 2 if accumulate > plan.accumulate == 1 else 1
            state = memory.parameters + memory.optimizer_state + memory.gradients * sums
            copies = memory.weight_copies
            if fsdp > 1 and not copies:
                copies = memory.parameters  # gathered
            activations = memory.activations * plan.accumulate / accumulate
            needed = state * now / fsdp + copies + memory.batch + activations
            if needed <= FILL * chip.memory * GIB:
                return fsdp, accumulate, needed
    return None


def count(tree: Any) -> int:
    """Numbers in all arrays of a tree."""
    return sum(array.size for array in jax.tree.leaves(tree))
