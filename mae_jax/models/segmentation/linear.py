"""The linear head: a probe of what the tokens say of their patches."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float, Float32

from mae_jax.models.batch_norm import BatchNorm
from mae_jax.models.dense import Dense


class LinearHead(nn.Module):
    """Batch norm without affine, then one dense layer for every patch.

    Maps of several blocks are concatenated.
    """

    num_classes: int
    dtype: Any = jnp.float32

    dropout = 0.0

    @nn.compact
    def __call__(
        self,
        maps: Sequence[Float[ArrayLike, 'B h w D']],
        train: bool = False,
        noise: None = None,
    ) -> Float32[Array, 'B h w {self.num_classes}']:
        """Computes the logits of every patch; `noise` is that of heads with dropout."""
        x = BatchNorm(name='norm')(jnp.concatenate(maps, axis=-1), train)
        init = nn.initializers.normal(0.01)
        return Dense(self.num_classes, self.dtype, jnp.float32, init, name='classifier')(x)

    def flops(self, grid: tuple[int, int], width: int, taps: int) -> float:
        """Counts the operations of the products, forward, for an image of `grid` patches."""
        return 2.0 * grid[0] * grid[1] * width * taps * self.num_classes
