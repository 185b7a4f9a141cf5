"""Devices -> mesh, and how batches and parameters are laid out over it.

The mesh has two axes. The batch is split over both; parameters and optimiser state are split over
`fsdp` and replicated over `data`. Layouts are decided from shapes alone, so models know nothing of
them, and a checkpoint written under one mesh is read under any other.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mae_jax.errors import UserError

AXES = ('data', 'fsdp')
MIN_SHARDED_SIZE = 4096
"""Arrays of fewer elements are replicated: gathering them costs more than holding them."""


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A ('data', 'fsdp') mesh over `devices` (default: all), `fsdp` of them sharing one copy.

    Raises:
      UserError: the number of devices is not a multiple of `fsdp`.
    """
    devices = jax.devices() if devices is None else list(devices)
    shape = _shape(len(devices), fsdp)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def planned_mesh(devices: int, fsdp: int = 1) -> AbstractMesh:
    """The mesh of so many devices that are not here: enough for layouts, of no use to run on.

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
    """Raises a UserError unless every device gets as many rows of every micro-batch.

    And all `repeats` rows of an image.
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
    """Rows split over every device."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh | AbstractMesh, state: Any, min_size: int = MIN_SHARDED_SIZE) -> Any:
    """A NamedSharding for every array of a state: large ones split on their largest divisible axis.

    Optimiser moments have their parameter's shape, so they lie beside it.
    """

    def layout(array: jax.ShapeDtypeStruct) -> NamedSharding:
        fsdp = mesh.shape['fsdp']
        axes = [axis for axis, size in enumerate(array.shape) if size % fsdp == 0]
        if fsdp == 1 or not axes or array.size < min_size:
            return replicated(mesh)
        largest = max(axes, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * largest, 'fsdp'))

    return jax.tree.map(layout, state)


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Numbers of the rows of a global batch that this process's devices own, ascending."""
    owned = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in owned]))


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows (see `local_rows`) -> the global batch on the devices.

    An array may have a row for several examples: each is split over the devices by itself.
    """
    sharding, here = batch_sharding(mesh), len(mesh.local_devices)
    return {
        name: jax.make_array_from_process_local_data(
            sharding, rows, (len(rows) * mesh.size // here, *rows.shape[1:])
        )
        for name, rows in batch.items()
    }


def split_rows(rows: jax.Array, parts: int) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...]: row r goes to part r mod `parts`.

    So every device splits its own rows, and none travels.
    """
    return jnp.moveaxis(rows.reshape(len(rows) // parts, parts, *rows.shape[1:]), 1, 0)


def join_rows(parts: jax.Array) -> jax.Array:
    """The inverse of `split_rows`."""
    return jnp.moveaxis(parts, 0, 1).reshape(-1, *parts.shape[2:])
