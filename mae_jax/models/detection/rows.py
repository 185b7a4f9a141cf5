"""Computes on the rows that each device has, what XLA would compute of all rows on every device."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Num, Shaped


def by_rows(function: Callable[..., Any], *arrays: Shaped[Array, 'B ...']) -> Any:
    """Maps a function of arrays of B rows over the mesh that is set around the call, if it can.

    It may not depend on other rows. Rows that the devices do not divide are left to XLA.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes or len(arrays[0]) % mesh.size:
        return function(*arrays)
    rows = PartitionSpec(mesh.axis_names)
    return jax.shard_map(function, in_specs=rows, out_specs=rows, check_vma=False)(*arrays)


def top_k(x: Num[Array, 'B A'], count: int) -> tuple[Num[Array, 'B {count}'], Array]:
    """Returns the largest numbers of each row, descending, and their places.

    XLA gathers the rows of all devices for it, and sorts all of them on each.
    """
    return by_rows(partial(_top_k, count=count), x)


def _top_k(x: Num[Array, 'B A'], *, count: int) -> tuple[Array, Array]:
    return tuple(lax.top_k(x, count))
