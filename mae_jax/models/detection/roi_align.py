"""RoIAlign as products with interpolation matrices, whose gradient does not scatter.

A bilinear sample is a product with a row of weights for each axis, and so is the mean of samples:
cells = rows [s, h] x map [h, w, D] x columns [s, w], s * h * w * D multiplications a box. Gathers
would be fewer, but the gradient of one is a scatter.

The first product of all boxes, [R, s, w, D], would be large: of 512 boxes of 7 cells on a map of
256 x 256 cells and 256 channels 470 MB an image in bfloat16. Boxes are therefore cut in chunks, in
a loop, of at most `CHUNK` numbers (64 MiB in bfloat16, 128 in float32) for each image of a device.
Without a gradient for boxes the products are linear, and the backward pass keeps none of them.
"""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Float32, Int

from mae_jax.models.detection.boxes import area

CHUNK = 2**25
CANONICAL_SIDE, CANONICAL_LEVEL = 224, 4
"""A box of the area of a square of this side is cut from the map with cells of 2^4 pixels."""


def roi_align(
    features: Float[ArrayLike, 'B h w D'],
    boxes: Float32[ArrayLike, 'B R 4'],
    scale: float,
    size: int,
    samples: int = 2,
) -> Float[Array, 'B R {size} {size} D']:
    """Averages bilinear samples of a map in the cells of boxes (Mask R-CNN, section 3).

    As torchvision's with aligned=True. The result has the dtype of the map; boxes have no gradient.

    Args:
      boxes: in pixels.
      scale: cells of the map per pixel: 1/16 for cells of 16 pixels.
      size: rows and columns of cells of the result.
      samples: of a cell, in each direction.
    """
    return _cut([jnp.asarray(features)], [scale], boxes, size, samples)


def multilevel_roi_align(
    maps: Sequence[Float[ArrayLike, 'B _h _w D']],
    boxes: Float32[ArrayLike, 'B R 4'],
    stride: float,
    size: int,
    samples: int = 2,
) -> Float[Array, 'B R {size} {size} D']:
    """Cuts each box from the map of its size: `roi_align` by `assign_levels`.

    The products are computed with all maps, and with weights of zero but for one of them.

    Args:
      stride: between the cells of the first map, in pixels; of each next map, twice as much.
    """
    scales = [1 / (stride * 2**level) for level in range(len(maps))]
    levels = assign_levels(boxes, stride, len(maps))
    return _cut([jnp.asarray(x) for x in maps], scales, boxes, size, samples, levels)


def assign_levels(
    boxes: Float32[ArrayLike, '*S 4'], stride: float, levels: int
) -> Int[Array, '*S']:
    """Returns the number of the map that each box is cut from (FPN, arXiv 1612.03144, equation 1).

    Args:
      stride: between the cells of the first map, in pixels.
      levels: number of maps.
    """
    side = jnp.sqrt(area(boxes)) / CANONICAL_SIDE
    level = CANONICAL_LEVEL - np.log2(stride) + jnp.log2(side + 1e-8)
    return jnp.clip(jnp.floor(level), 0, levels - 1).astype(jnp.int32)


def _cut(
    maps: list[Array],
    scales: list[float],
    boxes: Float32[ArrayLike, 'B R 4'],
    size: int,
    samples: int,
    levels: Int[ArrayLike, 'B R'] | None = None,
) -> Float[Array, 'B R {size} {size} D']:
    """Cuts boxes chunk by chunk, from the map that `levels` names, or the only one."""
    boxes = lax.stop_gradient(jnp.asarray(boxes, jnp.float32))
    batch, count, _ = boxes.shape
    levels = jnp.zeros((batch, count), jnp.int32) if levels is None else levels
    dtype, width = maps[0].dtype, maps[0].shape[-1]
    # As float32: the gradients of all chunks are added up in the dtype of what a loop reads.
    maps = [x.astype(jnp.float32) for x in maps]
    most = max(CHUNK // max(size * x.shape[2] * width for x in maps), 1)
    chunks = -(-count // most)
    length = -(-count // chunks)

    def split(x: Array) -> Array:
        x = jnp.pad(x, [(0, 0), (0, chunks * length - count)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, chunks, length, *x.shape[2:]), 1, 0)

    def cut(chunk: tuple[Array, Array]) -> Array:
        boxes, levels = chunk
        cells = 0
        for number, (x, scale) in enumerate(zip(maps, scales, strict=True)):
            weigh = partial(_weights, size=size, samples=samples)
            rows = weigh(boxes[..., 1] * scale, boxes[..., 3] * scale, length=x.shape[1])
            columns = weigh(boxes[..., 0] * scale, boxes[..., 2] * scale, length=x.shape[2])
            rows *= (levels == number)[..., None, None]
            cells += _products(x.astype(dtype), rows, columns)
        return cells

    cells = jnp.moveaxis(lax.map(cut, (split(boxes), split(levels))), 0, 1)
    return cells.reshape(batch, chunks * length, size, size, width)[:, :count]


def _weights(
    start: Float32[Array, 'B R'],
    stop: Float32[Array, 'B R'],
    *,
    size: int,
    samples: int,
    length: int,
) -> Float32[Array, 'B R {size} {length}']:
    """Computes the weights of the `length` cells of an axis in each of `size` cells of boxes.

    Samples up to one cell beyond an end are taken at the end; others are zero.
    """
    places = np.arange(size)[:, None] + (np.arange(samples) + 0.5) / samples
    at = (stop - start)[..., None, None] * (places / size).astype(np.float32)
    at += start[..., None, None] - 0.5
    inside = (at >= -1) & (at <= length)
    distance = jnp.abs(jnp.clip(at, 0, length - 1)[..., None] - np.arange(length))
    return (jnp.maximum(1 - distance, 0) * inside[..., None]).mean(axis=-2)


def _products(
    x: Float[Array, 'B h w D'],
    rows: Float32[Array, 'B R s h'],
    columns: Float32[Array, 'B R s w'],
) -> Float[Array, 'B R s s D']:
    rows, columns = rows.astype(x.dtype), columns.astype(x.dtype)
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    product = partial(jnp.einsum, precision=precision)
    return product('brjw,briwd->brijd', columns, product('brih,bhwd->briwd', rows, x))


def roi_align_flops(grids: Sequence[tuple[int, int]], boxes: int, size: int, width: int) -> float:
    """Counts the products, forward, of one image with maps of these rows and columns."""
    return 2.0 * boxes * width * sum(size * w * (h + size) for h, w in grids)
