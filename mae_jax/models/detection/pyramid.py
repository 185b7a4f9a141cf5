"""The simple feature pyramid: maps of five sizes from the last one of an encoder."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from mae_jax.errors import UserError
from mae_jax.models.detection.layers import NormedConv, torch_uniform
from mae_jax.models.norm import LayerNorm
from mae_jax.models.segmentation.layers import Doubling, halve
from mae_jax.models.transformer import gelu

SCALES = (4.0, 2.0, 1.0, 0.5, 0.25)
"""Sizes of the maps, relative to that of patches."""
ROI_LEVELS = 4
"""The heads of boxes and masks see so many of them, the first."""


class FeaturePyramid(nn.Module):
    """Maps of 4, 2, 1, 1/2 and 1/4 times the size (arXiv 2203.16527, section 3 and appendix A).

    The last takes every second cell of the one before it.
    """

    channels: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, features: Float[ArrayLike, 'B h w D']
    ) -> list[Float[Array, 'B _h _w {self.channels}']]:
        x = jnp.asarray(features, self.dtype)
        width = x.shape[-1]
        quadruple = Doubling(width // 2, self.dtype, name='quadruple_1')(x)
        quadruple = gelu(LayerNorm(dtype=self.dtype, name='quadruple_norm')(quadruple))
        maps = {
            'x4': Doubling(width // 4, self.dtype, name='quadruple_2')(quadruple),
            'x2': Doubling(width // 2, self.dtype, name='double')(x),
            'x1': x,
            'half': halve(x),
        }
        options = dict(relu=False, dtype=self.dtype, kernel_init=torch_uniform)
        outputs = []
        for name, x in maps.items():
            x = NormedConv(self.channels, 1, **options, name=f'lateral_{name}')(x)
            outputs.append(NormedConv(self.channels, 3, **options, name=f'output_{name}')(x))
        strides = (1, 2, 2, 1)
        return [*outputs, lax.slice(outputs[-1], (0,) * 4, outputs[-1].shape, strides)]

    def flops(self, grid: tuple[int, int], width: int) -> float:
        """Counts the products, forward, for an image of `grid` patches of this width."""
        patches, ours = grid[0] * grid[1], self.channels
        doublings = 4 * (width * width // 2 + 4 * (width // 2) * (width // 4) + width * width // 2)
        smallest = (grid[0] // 2) * (grid[1] // 2)
        cells = {width // 4: 16 * patches, width // 2: 4 * patches}
        convolutions = sum(n * ours * (w + 9 * ours) for w, n in cells.items())
        convolutions += (patches + smallest) * ours * (width + 9 * ours)
        return 2.0 * (patches * doublings + convolutions)


def pyramid_grids(grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Returns rows and columns of the maps of an image of `grid` patches.

    Raises:
      UserError: a side is one patch, which has no half.
    """
    rows, columns = grid
    if min(grid) < 2:
        raise UserError(
            f'An image of {rows} x {columns} patches is too small for detection: choose an '
            'image_size of at least twice model.patch_size.'
        )
    half = rows // 2, columns // 2
    last = -(-half[0] // 2), -(-half[1] // 2)
    return [(4 * rows, 4 * columns), (2 * rows, 2 * columns), grid, half, last]
