"""Makes the mesh of devices, and lays out batches and parameters over it.

The mesh has two axes. The batch is split over both; parameters are split over `fsdp` and replicated
over `data`; what the optimiser keeps is split over both (ZeRO-1). `topology.py` decides which
device stands where. Layouts are decided from shapes alone: models are independent of them, and a
checkpoint written under one mesh is read under any other.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mae_jax.data.loader.assembly import put_whole
from mae_jax.data.loader.layout import Memory
from mae_jax.errors import UserError
from mae_jax.training.topology import arrange

AXES = ('data', 'fsdp')
MIN_SHARDED_SIZE = 4096
"""Arrays of fewer elements are replicated: gathering them costs more than holding them."""
TILE = (8, 128)
"""A TPU stores the last two axes of an array in tiles of this size."""


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a ('data', 'fsdp') mesh over `devices` (default: all), `fsdp` of them sharing one copy.

    Raises:
      UserError: the number of devices is not a multiple of `fsdp`.
    """
    devices = jax.devices() if devices is None else list(devices)
    _, fsdp = _shape(len(devices), fsdp)
    return Mesh(arrange(devices, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


def planned_mesh(devices: int, fsdp: int = 1) -> AbstractMesh:
    """Makes the mesh of devices that this machine lacks, for layouts; nothing can run on it.

    Raises:
      UserError: the number of devices is not a multiple of `fsdp`.
    """
    return AbstractMesh(_shape(devices, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


def _shape(devices: int, fsdp: int) -> tuple[int, int]:
    if fsdp < 1 or devices % fsdp:
        raise UserError(
            f'mesh.fsdp={fsdp} does not divide the {devices} devices of this run: '
            'choose one of their divisors.'
        )
    return devices // fsdp, fsdp


def check_batch(
    batch_size: int, mesh: Mesh | AbstractMesh, accumulate: int = 1, repeats: int = 1
) -> None:
    """Raises a UserError unless a batch divides evenly over devices and micro-batches.

    All `repeats` rows of an image must lie on one device.
    """
    if batch_size < 1 or accumulate < 1 or batch_size % (mesh.size * accumulate):
        multiple = mesh.size * max(accumulate, 1)
        raise UserError(
            f'batch_size={batch_size} cannot be split over {mesh.size} device(s) in '
            f'optimizer.accumulate={accumulate} micro-batch(es): choose a multiple of {multiple}.'
        )
    if repeats < 1 or batch_size % (mesh.size * repeats):
        raise UserError(
            f'batch_size={batch_size} cannot be split over {mesh.size} device(s) with all '
            f'dataset.repeats={repeats} rows of an image on one of them: choose a multiple of '
            f'{mesh.size * max(repeats, 1)}.'
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the layout of batches: rows split over every device."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the layout of arrays of which every device holds a copy."""
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
    """Returns a NamedSharding for every array: large ones are split over `fsdp`."""
    return jax.tree.map(lambda x: NamedSharding(mesh, _specs(mesh, x.shape)[0]), tree)


def update_shardings(mesh: Mesh | AbstractMesh, tree: Any) -> Any:
    """Returns a NamedSharding for every array: large ones are split over `fsdp` and over `data`.

    Devices along `data` hold the same parameters, and would all compute the same update from the
    same moments: each computes, and keeps what is needed for, a part of it.
    """
    return jax.tree.map(lambda x: NamedSharding(mesh, _specs(mesh, x.shape)[1]), tree)


def split_for_update(tree: Any) -> Any:
    """Constrains traced arrays to `update_shardings` on the mesh that is set around the call.

    Gradients are then reduced to the part of each device, and not whole on all.
    """
    return _constrained(tree, update_shardings)


def split_as_parameters(tree: Any) -> Any:
    """Constrains traced arrays to `parameter_shardings` on the mesh that is set around the call.

    What comes before is not computed in the layout of what comes after.
    """
    return _constrained(tree, parameter_shardings)


def _constrained(tree: Any, layout: Callable) -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return tree
    return jax.lax.with_sharding_constraint(tree, layout(mesh, tree))


def _specs(mesh: Mesh | AbstractMesh, shape: tuple[int, ...]) -> tuple[PartitionSpec, ...]:
    """Returns how an array of parameters is split, and an array that only the update needs.

    Both on one axis where it divides: XLA reduces gradients to parts of one axis only.
    """
    names, fsdp, data = [()] * len(shape), mesh.shape['fsdp'], mesh.shape['data']
    small = math.prod(shape) < MIN_SHARDED_SIZE
    # A table of positions, [1, N, D], is added to activations, which XLA would split like it.
    axis = None if small or shape[0] == 1 else _best_axis(shape, fsdp)
    if axis is not None:
        names[axis] = ('fsdp',)
        shape = _split(shape, axis, fsdp)
    parameter = PartitionSpec(*names)
    if axis is None or shape[axis] % data:
        axis = None if small else _best_axis(shape, data)
    if axis is not None:
        names[axis] += ('data',)
    return parameter, PartitionSpec(*names)


def _best_axis(shape: tuple[int, ...], pieces: int) -> int | None:
    """Returns the axis to split, the first of those whose pieces fill the most of their tiles."""
    axes = [axis for axis, size in enumerate(shape) if size % pieces == 0]
    if pieces == 1 or not axes:
        return None
    return min(axes, key=lambda axis: _stored(_split(shape, axis, pieces)))


def _split(shape: tuple[int, ...], axis: int, pieces: int) -> tuple[int, ...]:
    return *shape[:axis], shape[axis] // pieces, *shape[axis + 1 :]


def _stored(shape: tuple[int, ...]) -> int:
    """Counts the elements that an array takes in memory, with the rest of its tiles."""
    *outer, rows, columns = 1, *shape
    padded = (-(-size // tile) * tile for size, tile in zip((rows, columns), TILE, strict=True))
    return math.prod([*outer, *padded])


def on_mesh(function: Callable, mesh: Mesh) -> Callable:
    """Sets the mesh around a function that is to be compiled for it.

    What XLA cannot split by itself, such as a kernel, is then mapped over the mesh, and what
    depends on the platform is chosen for these devices, though they be not in this machine.
    """

    @functools.wraps(function)
    def call(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return call


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of a global batch that this process's devices own, ascending."""
    owned = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in owned]))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this process's rows (see `local_rows`) of the global batch onto its devices.

    Every array is split over the devices by itself: one may have a row for several examples.
    """
    return put_whole(Devices(mesh), batch)


class Devices:
    """Puts batches onto the devices of this process, a piece at a time: a loader's `Destination`.

    Piece i of a batch has the i-th part of the rows of `local_rows`, all of one device.

    Args:
      mesh: the devices of all processes.
      check: called with the arrays of every piece before they are put.

    Attributes:
      pieces: of a batch, one for each device of this process.
    """

    def __init__(self, mesh: Mesh, check: Callable[[dict[str, np.ndarray]], None] | None = None):
        self._layout, self._check, self._size = batch_sharding(mesh), check, mesh.size
        rows = self._layout.addressable_devices_indices_map((mesh.size,))
        self._devices = sorted(rows, key=lambda device: rows[device][0].indices(mesh.size))
        self.pieces = len(self._devices)
        self._memory = Memory()

    def put(self, number: int, rows: dict[str, np.ndarray], lent: bool) -> dict[str, jax.Array]:
        """Starts to transfer a piece; ends it as well if the memory of its arrays is `lent`."""
        if self._check:
            self._check(rows)
        device = self._devices[number]
        if lent and device.platform == 'cpu':  # whose arrays may be the host's, without a copy
            rows = {name: self._memory.copy(array) for name, array in rows.items()}
        arrays = jax.device_put(rows, device)
        return jax.block_until_ready(arrays) if lent else arrays

    def join(self, pieces: Sequence[dict[str, jax.Array]]) -> dict[str, jax.Array]:
        """Makes global arrays of the pieces of all devices of this process."""
        batch = {}
        for name in pieces[0]:
            arrays = [piece[name] for piece in pieces]
            count, *shape = arrays[0].shape
            batch[name] = jax.make_array_from_single_device_arrays(
                (count * self._size, *shape), self._layout, arrays
            )
        return batch


def put(array: np.ndarray | jax.Array, layout: NamedSharding) -> jax.Array:
    """Lays out an array that every process holds, the same in all of them.

    `jax.device_put` would compare a NumPy array on all processes first, which gathers it from each.
    """
    array = np.asarray(array)
    indices = layout.addressable_devices_indices_map(array.shape)
    pieces = [jax.device_put(array[index], device) for device, index in indices.items()]
    return jax.make_array_from_single_device_arrays(array.shape, layout, pieces)


def split_rows(rows: jax.Array, count: int) -> jax.Array:
    """Splits [B, ...] into micro-batches [count, B / count, ...]: row r goes to r mod `count`.

    Every device thereby splits its own rows, and none is transferred.
    """
    return jnp.moveaxis(rows.reshape(len(rows) // count, count, *rows.shape[1:]), 1, 0)


def join_rows(micro_batches: jax.Array) -> jax.Array:
    """Inverts `split_rows`."""
    return jnp.moveaxis(micro_batches, 0, 1).reshape(-1, *micro_batches.shape[2:])
