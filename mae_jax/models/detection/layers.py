"""What pyramid and heads are built from: a convolution with layer norm."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float

from mae_jax.models.norm import LayerNorm
from mae_jax.models.segmentation.layers import kaiming

torch_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
"""PyTorch's initial values of a convolution."""


class NormedConv(nn.Module):
    """Convolution without bias, layer norm of the channels of each cell, and a ReLU or none.

    Attributes:
      side: of the kernel in cells, odd; the map keeps its size.
    """

    width: int
    side: int = 3
    relu: bool = True
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = kaiming

    @nn.compact
    def __call__(self, x: Float[ArrayLike, '*S h w D']) -> Float[Array, '*S h w {self.width}']:
        options = dict(use_bias=False, dtype=self.dtype, kernel_init=self.kernel_init)
        x = nn.Conv(self.width, (self.side, self.side), **options, name='conv')(x)
        x = LayerNorm(dtype=self.dtype, name='norm')(x)
        return nn.relu(x) if self.relu else x
