"""The attention layer: projections around attention, and the relative positions in it."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float

from mae_jax.models.attention.dispatch import attend
from mae_jax.models.attention.plain import split
from mae_jax.models.dense import Dense
from mae_jax.models.options import EncoderOptions
from mae_jax.models.relative import Bias, beit_bias, table_rows, vitdet_bias


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection.

    `apply(..., mutable='intermediates')` returns its weights too, float32 [B, heads, T, T], if
    `implementation` is 'plain'; see `attend` for the others.

    Attributes:
      options: of them, those about relative positions, the bias of keys, and the cls token.
      grid: rows and columns of the patches among the tokens, for relative positions.
    """

    heads: int
    dtype: Any = jnp.float32
    implementation: str = 'plain'
    out_dtype: Any = None
    options: EncoderOptions = EncoderOptions()
    grid: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, tokens: Float[ArrayLike, 'B T D']) -> Float[Array, 'B T D']:
        width = tokens.shape[-1]
        zero_bias = None if self.options.key_bias else (width, 2 * width)
        # Fused, because Xavier's bound depends on the shape: [D, 3D], not three times [D, D].
        # On a TPU its result's gradient is that of a kernel.
        project = Dense(3 * width, self.dtype, sum_by_product=True, zero_bias=zero_bias, name='qkv')
        qkv = project(tokens)
        mixed, weights = attend(qkv, self.heads, self.implementation, self._bias(qkv))
        if weights is not None:
            self.sow('intermediates', 'weights', weights)  # a no-op unless that is mutable
        return Dense(width, self.dtype, self.out_dtype, name='proj')(mixed)

    def _bias(self, qkv: Float[Array, 'B T E']) -> Bias | None:
        """Returns what relative positions add to the logits."""
        kind, zeros = self.options.relative_positions, nn.initializers.zeros
        if kind == 'none':
            return None
        if kind == 'beit':
            rows = table_rows(self.grid, self.options.cls_token)
            table = self.param('relative_table', zeros, (rows, self.heads))
            return beit_bias(table, self.grid, self.options.cls_token)
        queries = split(qkv, self.heads)[0]
        embeddings = [
            self.param(name, zeros, (2 * side - 1, queries.shape[-1]))
            for name, side in zip(('rel_pos_h', 'rel_pos_w'), self.grid, strict=True)
        ]
        return vitdet_bias(queries, *embeddings, self.grid)
