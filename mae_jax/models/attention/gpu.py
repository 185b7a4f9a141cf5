"""Attention by cuDNN's fused kernels on a GPU."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mae_jax.models.attention.plain import split

HEAD_WIDTH = 128
"""Widest head that cuDNN takes on every GPU; widths must be multiples of 8."""


def cudnn_attention(qkv: Float[Array, 'B N E'], heads: int) -> Float[Array, 'B N D']:
    """Computes attention of any number of tokens in bfloat16, with a backward pass.

    JAX refuses the backward pass for odd numbers of tokens. These get one more, which the lengths
    that go along exclude: cuDNN gives it no weight and no gradient.

    Raises:
      NotImplementedError, RuntimeError: this GPU or its cuDNN cannot, or the heads are too wide.
    """
    batch, tokens, _ = qkv.shape
    options = {}
    if tokens % 2:
        qkv = jnp.pad(qkv, ((0, 0), (0, 1), (0, 0)))
        lengths = jnp.full(batch, tokens, jnp.int32)
        options = {'query_seq_lengths': lengths, 'key_value_seq_lengths': lengths}
    q, k, v = split(qkv, heads)
    mixed = jax.nn.dot_product_attention(q, k, v, implementation='cudnn', **options)
    return mixed[:, :tokens].reshape(batch, tokens, -1)
