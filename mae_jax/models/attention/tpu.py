"""Attention by the TPU's kernels as one differentiable operation, on each device's own rows.

XLA cannot see into a kernel and would gather its inputs on every device. The operation is therefore
mapped over the mesh that is set around it (`jax.sharding.use_abstract_mesh`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from mae_jax.models.attention import tpu_kernels
from mae_jax.models.attention.plain import plain_attention
from mae_jax.models.attention.tpu_tiles import LANES, tiling

MAX_TOKENS = 1024
"""Longest sequence whose weights fit into a chip's vector memory, with what else is there."""


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def tpu_attention(qkv: Float[Array, 'B N E'], heads: int) -> Float[Array, 'B N D']:
    """Computes attention by a Pallas kernel on a TPU, by plain products elsewhere.

    Its weights are computed again in the backward pass, whatever is rematerialised. It has no
    forward mode (`jax.jvp`, `jax.hessian`, `jax.linearize`), which `plain_attention` has.

    Args:
      qkv: of at most `MAX_TOKENS` tokens; q, k and v side by side, each head by head.
    """
    return _forward(qkv, heads)[0]


def _plain_forward(qkv: Array, *, heads: int) -> tuple[Array, Array]:
    tiles = tiling(qkv.shape[1], qkv.shape[2] // 3, heads, qkv.dtype)
    no_sums = jnp.zeros((qkv.shape[0], tiles.windows, len(tiles.tiles), LANES), jnp.float32)
    return plain_attention(qkv, heads)[0], no_sums


def _plain_backward(qkv: Array, sums: Array, gradient: Array, *, heads: int) -> Array:
    del sums
    return jax.vjp(lambda qkv: plain_attention(qkv, heads)[0], qkv)[1](gradient)[0]


def _on_each_device(kernel: Callable, plain: Callable, heads: int, *arrays: Array) -> Any:
    """Computes a function of arrays [B, ...], by `kernel` on a TPU and by `plain` elsewhere."""
    mesh = jax.sharding.get_abstract_mesh()

    def compute(*arrays):
        return jax.lax.platform_dependent(
            *arrays,
            tpu=partial(kernel, heads=heads, interpret=False),
            default=partial(plain, heads=heads),
        )

    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
        return compute(*arrays)
    rows = PartitionSpec(mesh.axis_names)
    return jax.shard_map(compute, in_specs=rows, out_specs=rows, check_vma=False)(*arrays)


def _forward(qkv: Array, heads: int) -> tuple[Array, Array]:
    return _on_each_device(tpu_kernels.forward, _plain_forward, heads, qkv)


def _keep(qkv: Array, heads: int) -> tuple[Array, tuple[Array, Array]]:
    mixed, sums = _forward(qkv, heads)
    return mixed, (qkv, sums)


def _backward(heads: int, kept: tuple[Array, Array], gradient: Array) -> tuple[Array]:
    gradients = _on_each_device(tpu_kernels.backward, _plain_backward, heads, *kept, gradient)
    return (gradients,)


tpu_attention.defvjp(_keep, _backward)
