"""Attention by plain products: the reference, and what runs where there is nothing better."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from mae_jax.models.relative import Bias, join_bias


def split(qkv: Float[Array, 'B N E'], heads: int) -> list[Float[Array, 'B N h d']]:
    """Returns q, k and v, head by head."""
    batch, length, width = qkv.shape
    # The gradient of `lax.split` joins q's, k's and v's; that of slices adds them up, each padded.
    thirds = jax.lax.split(qkv, [width // 3] * 3, axis=2)
    return [third.reshape(batch, length, heads, -1) for third in thirds]


def plain_attention(
    qkv: Float[Array, 'B N E'], heads: int, bias: Bias | None = None
) -> tuple[Float[Array, 'B N D'], Float32[Array, 'B h N N']]:
    """Returns what attention mixes, and its weights; `bias` is added to the logits.

    Products are faster on a CPU than `jax.nn.dot_product_attention`.
    """
    q, k, v = split(qkv, heads)
    q, k, bias = join_bias(q * q.shape[-1] ** -0.5, k, bias)
    logits = jnp.einsum('bqhd,bkhd->bhqk', q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        logits += bias
    weights = jax.nn.softmax(logits, axis=-1)
    mixed = jnp.einsum('bhqk,bkhd->bqhd', weights.astype(v.dtype), v)
    return mixed.reshape(*qkv.shape[:2], -1), weights
