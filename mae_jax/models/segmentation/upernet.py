"""UperNet, and the auxiliary FCN head: what the paper's Table 5 is measured with.

"Unified Perceptual Parsing for Scene Understanding" (arXiv 1807.10221), on the pyramid that BEiT's
code makes of four maps of one size.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, ArrayLike, Float, Float32

from mae_jax.models.batch_norm import BatchNorm
from mae_jax.models.dense import Dense
from mae_jax.models.segmentation.layers import (
    EPS,
    ConvBlock,
    Doubling,
    drop_channels,
    halve,
    pool,
    resize,
)
from mae_jax.models.transformer import gelu

BINS = (1, 2, 3, 6)
"""Sides of the grids of bins of pyramid pooling."""
LEVELS = 4


class Pyramid(nn.Module):
    """Four maps of one size -> maps of 4, 2, 1 and 1/2 times the size, of the same width."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Sequence[Float[ArrayLike, 'B h w D']], train: bool
    ) -> list[Float[Array, 'B _h _w D']]:
        maps = [jnp.asarray(x, self.dtype) for x in maps]
        width = maps[0].shape[-1]
        quadruple = Doubling(width, self.dtype, name='quadruple_1')(maps[0])
        quadruple = BatchNorm(EPS, affine=True, name='quadruple_norm')(quadruple, train)
        quadruple = gelu(quadruple).astype(self.dtype)
        return [
            Doubling(width, self.dtype, name='quadruple_2')(quadruple),
            Doubling(width, self.dtype, name='double')(maps[1]),
            maps[2],
            halve(maps[3]),
        ]


class UperHead(nn.Module):
    """Pyramid, pyramid pooling of its smallest map, feature pyramid network, classifier.

    Attributes:
      width: channels between its layers.
      dropout: share of channels that are dropped before the classifier.
    """

    num_classes: int
    width: int = 768
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        maps: Sequence[Float[ArrayLike, 'B h w D']],
        train: bool = False,
        noise: Float32[ArrayLike, 'B {self.width}'] | None = None,
    ) -> Float32[Array, 'B _h _w {self.num_classes}']:
        """Computes logits at four times the size of the four maps.

        Args:
          maps: after four blocks, from the first to the last.
          train: whether to normalise by this batch and update 'batch_stats'.
          noise: uniform in [0, 1), by which channels are dropped; None drops none.
        """

        def block(x: Array, name: str, side: int = 1) -> Array:
            return ConvBlock(self.width, side, self.dtype, name=name)(x, train)

        levels = Pyramid(self.dtype, name='pyramid')(maps, train)
        smallest = levels[-1]
        pooled = [block(pool(smallest, bins), f'pooling_{bins}') for bins in BINS]
        pooled = [resize(x, smallest.shape[1:3]) for x in pooled]
        joined = jnp.concatenate([smallest, *pooled], axis=-1)

        outputs = [block(joined, 'bottleneck', side=3)]
        lateral = outputs[0]
        for level in reversed(range(LEVELS - 1)):
            x = block(levels[level], f'lateral_{level}')
            lateral = x + resize(lateral, x.shape[1:3])
            outputs.insert(0, block(lateral, f'fpn_{level}', side=3))
        outputs = [resize(x, outputs[0].shape[1:3]) for x in outputs]
        x = block(jnp.concatenate(outputs, axis=-1), 'fpn_bottleneck', side=3)
        return _classified(x, noise, self)

    def flops(self, grid: tuple[int, int], width: int, taps: int) -> float:
        """Counts the operations of the products, forward, for an image of `grid` patches."""
        ours, patches = self.width, grid[0] * grid[1]
        doublings = 4 * width**2 * (1 + 4 + 1)  # of the x4 map, at x1 and at x2, and of the x2 map
        pooling = width * ours * sum(bins**2 for bins in BINS) / patches
        bottleneck = 9 * (width + len(BINS) * ours) * ours / 4
        levels = (width * ours + 9 * ours**2) * (16 + 4 + 1)
        last = 16 * (9 * LEVELS * ours**2 + ours * self.num_classes)
        return 2.0 * patches * (doublings + pooling + bottleneck + levels + last)


class FCNHead(nn.Module):
    """One convolution of 3 x 3 on one of the maps, and a classifier: only training needs it.

    Attributes:
      tap: number of the map.
      width, dropout: as of `UperHead`.
    """

    num_classes: int
    width: int = 256
    tap: int = 2
    dropout: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        maps: Sequence[Float[ArrayLike, 'B h w D']],
        train: bool = False,
        noise: Float32[ArrayLike, 'B {self.width}'] | None = None,
    ) -> Float32[Array, 'B h w {self.num_classes}']:
        """Computes logits of every patch; the arguments are those of `UperHead`."""
        x = jnp.asarray(maps[self.tap], self.dtype)
        x = ConvBlock(self.width, 3, self.dtype, name='conv_0')(x, train)
        return _classified(x, noise, self)

    def flops(self, grid: tuple[int, int], width: int, taps: int) -> float:
        """Counts the operations of the products, forward, for an image of `grid` patches."""
        return 2.0 * grid[0] * grid[1] * self.width * (9 * width + self.num_classes)


def _classified(
    x: Float[Array, 'B h w D'], noise: Float32[ArrayLike, 'B D'] | None, head: UperHead | FCNHead
) -> Float32[Array, 'B h w classes']:
    x = drop_channels(x, noise, head.dropout)
    init = nn.initializers.normal(0.01)
    return Dense(head.num_classes, head.dtype, jnp.float32, init, name='classifier')(x)
