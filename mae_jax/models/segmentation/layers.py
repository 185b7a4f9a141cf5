"""Layers of maps: convolutions with batch norm, enlarging, pooling into a fixed number of bins.

Convolutions compute in `dtype`, sums within them and batch norm in float32. Initial values are
those of mmsegmentation.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float, Float32

from mae_jax.models.batch_norm import BatchNorm
from mae_jax.models.dense import linear

EPS = 1e-5
"""What PyTorch's batch norm adds to the variance."""
kaiming = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm, ReLU.

    Attributes:
      width: channels of the result.
      side: of the kernel in pixels, odd; the map keeps its size.
    """

    width: int
    side: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, 'B h w D'], train: bool
    ) -> Float[Array, 'B h w {self.width}']:
        options = dict(use_bias=False, dtype=self.dtype, kernel_init=kaiming, name='conv')
        x = nn.Conv(self.width, (self.side, self.side), **options)(x)
        x = BatchNorm(EPS, affine=True, name='norm')(x, train)
        return nn.relu(x).astype(self.dtype)


class Doubling(nn.Module):
    """Transposed convolution of 2 x 2 with stride 2: each position becomes 2 x 2 others.

    Attributes:
      kernel_init, bias_init: of [inputs, 2, 2, width] and [width]; None: as in PyTorch.
    """

    width: int
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer | None = None
    bias_init: nn.initializers.Initializer | None = None

    @nn.compact
    def __call__(
        self, x: Float[ArrayLike, 'B h w D']
    ) -> Float[Array, 'B {2*x.shape[1]} {2*x.shape[2]} {self.width}']:
        def init(key, shape):
            bound = (4 * self.width) ** -0.5  # PyTorch's, which takes the outputs for inputs
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        batch, rows, columns, width = x.shape
        kernel = self.param('kernel', self.kernel_init or init, (width, 2, 2, self.width))
        bias = self.param('bias', self.bias_init or init, (self.width,))
        kernel, bias = kernel.reshape(width, -1), jnp.tile(bias, 4)
        cells = linear(jnp.asarray(x, self.dtype), kernel, bias)
        cells = cells.reshape(batch, rows, columns, 2, 2, self.width).swapaxes(2, 3)
        return cells.reshape(batch, 2 * rows, 2 * columns, self.width)


def halve(x: Float[ArrayLike, 'B h w D']) -> Float[Array, 'B {x.shape[1]//2} {x.shape[2]//2} D']:
    """Takes the largest of every 2 x 2 values; an odd last row or column is left out.

    The first of equal values has the gradient, as in PyTorch. It is chosen by comparing inputs:
    that of `max` compares them with the result, and where XLA computes `x` again for it, rounded
    otherwise, none is equal, and 0 / 0 the gradient.
    """
    x = jnp.asarray(x)
    batch, rows, columns, width = x.shape
    rows, columns = rows // 2, columns // 2
    cells = x[:, : 2 * rows, : 2 * columns].reshape(batch, rows, 2, columns, 2, width)
    left, right = cells[:, :, :, :, 0], cells[:, :, :, :, 1]
    largest = jnp.where(left >= right, left, right)
    upper, lower = largest[:, :, 0], largest[:, :, 1]
    return jnp.where(upper >= lower, upper, lower)


def resize(x: Float[ArrayLike, 'B h w D'], size: tuple[int, int]) -> Float[Array, 'B H W D']:
    """Resizes bilinearly, as PyTorch does with align_corners=False, without antialiasing."""
    x = jnp.asarray(x)
    if x.shape[1:3] == tuple(size):
        return x
    shape = (len(x), *size, x.shape[-1])
    return jax.image.resize(x, shape, 'bilinear', antialias=False)


def pool(x: Float[ArrayLike, 'B h w D'], bins: int) -> Float32[Array, 'B {bins} {bins} D']:
    """Averages over bins x bins regions, those of PyTorch's AdaptiveAvgPool2d."""
    rows, columns = (_bin_weights(size, bins) for size in x.shape[1:3])
    highest = jax.lax.Precision.HIGHEST
    x = jnp.asarray(x, jnp.float32)
    return jnp.einsum('ih,bhwd,jw->bijd', rows, x, columns, precision=highest)


def _bin_weights(size: int, bins: int) -> Float32[np.ndarray, '{bins} {size}']:
    """Returns the weights of positions in bins, which overlap where `bins` does not divide."""
    bin_, place = np.arange(bins)[:, None], np.arange(size)
    start, stop = bin_ * size // bins, -((bin_ + 1) * size // -bins)
    inside = (place >= start) & (place < stop)
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def drop_channels(
    x: Float[Array, 'B h w D'], noise: Float32[ArrayLike, 'B D'] | None, rate: float
) -> Float[Array, 'B h w D']:
    """Drops whole channels of an example, and scales the others to keep the expectation.

    Args:
      noise: uniform in [0, 1); a channel below `rate` is dropped. None drops nothing.
    """
    if noise is None or not rate:
        return x
    factor = jnp.where(jnp.asarray(noise) < rate, 0.0, 1 / (1 - rate))
    return x * factor[:, None, None].astype(x.dtype)
