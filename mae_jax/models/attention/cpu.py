"""Attention on a CPU: products of float32, and few passes over the weights."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from mae_jax.models.attention.plain import split
from mae_jax.models.relative import Bias, join_bias


def cpu_attention(
    qkv: Float[Array, 'B N E'], heads: int, bias: Bias | None = None
) -> tuple[Float[Array, 'B N D'], Float32[Array, 'B h N N']]:
    """Returns what attention mixes, rounded once, and its weights.

    As `plain_attention`, but it divides by the sums of the exponentials after the product, N x d
    quotients a head instead of N x N; nor are there divisions of N x N in the gradient. All is
    float32, since XLA has no fast batched products of bfloat16 on a CPU and would convert anyway.
    """
    q, k, v = (part.astype(jnp.float32) for part in split(qkv, heads))
    q, k, bias = join_bias(q * q.shape[-1] ** -0.5, k, bias)
    q, k, v = (part.swapaxes(1, 2) for part in (q, k, v))  # [B, h, N, d]
    logits = _product(q, k, 3)
    if bias is not None:
        logits += bias
    exponentials = jnp.exp(logits - lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    sums = exponentials.sum(axis=-1, keepdims=True)
    mixed = (_product(exponentials, v, 2) / sums).swapaxes(1, 2)
    return mixed.reshape(*qkv.shape[:2], -1).astype(qkv.dtype), exponentials / sums


def _product(a: Float32[Array, 'B h N K'], b: Float32[Array, 'B h ...'], axis: int) -> Array:
    """Multiplies head by head, over the last axis of `a` and this axis of `b`."""
    return lax.dot_general(a, b, (((3,), (axis,)), ((0, 1), (0, 1))))
