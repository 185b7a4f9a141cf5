"""Restores arrays from disk: of replicas that are alike one is read, and sent to the others."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mae_jax.errors import Lost, UserError, brief
from mae_jax.files.buckets import service_problem
from mae_jax.runtime.agreement import gather

PyTree = Any


def restore_arrays(path: epath.Path, target: PyTree) -> PyTree:
    """Restores the arrays of a checkpoint into the shardings of `target`.

    Every process of the run must call it. With several, an array that is replicated over an axis of
    the mesh is read by the processes of its first replica alone, and travels to the others from
    device to device; of an array that is split over all devices every process reads its own parts.

    Args:
      path: the directory of the arrays.
      target: a pytree with `jax.ShapeDtypeStruct`s (or arrays) for leaves. Where several processes
        restore, all are laid out over one mesh.

    Raises:
      UserError: the arrays have other shapes than the target, or a process cannot read them.
    """
    leaves, structure = jax.tree.flatten(target)
    several = jax.process_count() > 1
    axes = [_replicated_axes(leaf.sharding) if several else () for leaf in leaves]
    wanted = [_wanted(*pair) for pair in zip(leaves, axes, strict=True)]
    values, problem = wanted, None
    if any(each is not ocp.PLACEHOLDER for each in wanted):
        try:
            values = jax.tree.leaves(_read(path, jax.tree.unflatten(structure, wanted)))
        except ValueError as error:
            problem = (
                f'The checkpoint {path.parent} does not fit this model ({brief(error)}): use the '
                'config it was trained with, or another --workdir.',
                False,
            )
        except Exception as error:  # the checksums are right, but Orbax cannot read the files
            service = service_problem(error, path) or (
                f'The checkpoint {path.parent} cannot be restored ({brief(error)}): remove it to '
                'go on from an earlier one, or choose another --workdir.'
            )
            problem = str(service), isinstance(service, Lost)
    if problem := next((problem for problem in gather(problem) if problem), None):
        message, lost = problem  # raised in every process: none waits for another's broadcast
        raise (Lost if lost else UserError)(message)
    return jax.tree.unflatten(structure, _broadcast(values, leaves, axes))


def _read(path: epath.Path, target: PyTree) -> PyTree:
    # A checkpointer would add barriers, at which a process whose reads fail would be missing.
    wanted = ocp.checkpoint_utils.construct_restore_args(target)
    args = ocp.args.PyTreeRestore(target, restore_args=wanted)
    return ocp.PyTreeCheckpointHandler().restore(path, args=args)


def _replicated_axes(sharding: NamedSharding) -> tuple[str, ...]:
    """Returns the mesh axes that do not split an array, if one replica spares others to read."""
    mesh, split = sharding.mesh, _names(sharding.spec)
    axes = tuple(name for name, size in mesh.shape.items() if size > 1 and name not in split)
    alone = axes and _processes(_first_replica(mesh, axes)) == _processes(mesh)
    return () if alone else axes


def _wanted(leaf: Any, axes: tuple[str, ...]) -> Any:
    """Returns what this process reads of an array: its parts of the first replica, or nothing."""
    source = _first_replica(leaf.sharding.mesh, axes) if axes else None
    if source is None:
        return leaf
    if jax.process_index() not in _processes(source):
        return ocp.PLACEHOLDER
    sharding = NamedSharding(source, leaf.sharding.spec)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _names(spec: PartitionSpec) -> list[str]:
    parts = (part if isinstance(part, tuple) else (part,) for part in spec if part is not None)
    return [name for part in parts for name in part]


def _first_replica(mesh: Mesh, axes: tuple[str, ...]) -> Mesh:
    first = tuple(slice(0, 1) if name in axes else slice(None) for name in mesh.axis_names)
    return Mesh(mesh.devices[first], mesh.axis_names)


def _processes(mesh: Mesh) -> set[int]:
    return {device.process_index for device in mesh.devices.flat}


def _broadcast(values: list[Any], targets: list[Any], axes: list[tuple[str, ...]]) -> list[Any]:
    """Sends arrays of a first replica to all; they are placeholders where none of it is."""
    received = []
    for number, target in enumerate(targets):
        value, values[number] = values[number], None  # frees its memory
        if axes[number]:
            # One after the other: groups of devices that wait for each other's would never end.
            value = jax.block_until_ready(
                _make_join(target.sharding)(_stack(value, target, axes[number]))
            )
        received.append(value)
    return received


def _stack(value: Any, target: Any, axes: tuple[str, ...]) -> jax.Array:
    """Makes [replicas, ...]: what this process has read in row 0, and zeros elsewhere."""
    mesh = target.sharding.mesh
    sharding = NamedSharding(mesh, PartitionSpec(axes, *target.sharding.spec))
    shape = (math.prod(mesh.shape[name] for name in axes), *target.shape)
    own = (
        {}
        if value is ocp.PLACEHOLDER
        else {shard.device: shard.data for shard in value.addressable_shards}
    )
    zeros = np.zeros(sharding.shard_shape(shape), target.dtype)
    rows = [
        own[device][None] if device in own else jax.device_put(zeros, device)
        for device in sharding.addressable_devices_indices_map(shape)
    ]
    return jax.make_array_from_single_device_arrays(shape, sharding, rows, dtype=target.dtype)


@functools.lru_cache
def _make_join(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
    """Makes the sum over rows; a shape, of which a model has many arrays, is compiled once."""

    def join(rows: jax.Array) -> jax.Array:
        bits = rows.view(f'uint{8 * rows.dtype.itemsize}')  # as floats, -0.0 + 0.0 is 0.0
        return jnp.sum(bits, axis=0, dtype=bits.dtype).view(rows.dtype)

    return jax.jit(join, out_shardings=sharding)
