"""Attention by plain products: the reference, and what runs where there is nothing better."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32


def split(qkv: Float[Array, 'B N E'], heads: int) -> list[Float[Array, 'B N h d']]:
    """Returns q, k and v, head by head."""
    batch, length, width = qkv.shape
    qkv = qkv.reshape(batch, length, 3, heads, width // 3 // heads)
    return [qkv[:, :, part] for part in range(3)]


def plain_attention(
    qkv: Float[Array, 'B N E'], heads: int
) -> tuple[Float[Array, 'B N D'], Float32[Array, 'B h N N']]:
    """Returns what attention mixes, and its weights.

    Products are faster on a CPU than `jax.nn.dot_product_attention`.
    """
    q, k, v = split(qkv, heads)
    logits = jnp.einsum(
        'bqhd,bkhd->bhqk', q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32
    )
    weights = jax.nn.softmax(logits, axis=-1)
    mixed = jnp.einsum('bhqk,bkhd->bqhd', weights.astype(v.dtype), v)
    return mixed.reshape(*qkv.shape[:2], -1), weights
