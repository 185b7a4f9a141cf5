"""Prepares batches on the device: crops, resizes and normalises images."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int, Num

from mae_jax.training.task import Batch

Array = jax.Array | np.ndarray


def loaded_images(batch: Batch, size: tuple[int, int]) -> Num[Array, 'B ...']:
    """Returns the images (or features) of a loaded batch, cropped from its canvases if any."""
    if 'canvas' in batch:
        return crop_and_resize(batch['canvas'], batch['box'], size)
    return batch['image']


def crop_and_resize(
    canvas: Num[Array, 'n S S C'], box: Int[Array, 'views 5'], size: tuple[int, int]
) -> Float32[Array, 'views H W C']:
    """Crops and resizes as Pillow's antialiased bicubic does, by two matrix products an image.

    Cubic convolution with a = -1/2, widened by the scale where the crop is reduced. Pixels outside
    of the crop have no influence. For uint8 the result of the first product is rounded too, as in
    Pillow; where Pillow (from 13 on) starts with the columns instead of the rows, that rounding
    differs by a level or two.

    Args:
      canvas: [n,S,S,C], an image at the upper left of each.
      box: int32 [n*r,5]: left, top, width, height of a crop, and 1 to flip it left to right; r of
        an image follow each other.
      size: height and width of the result.

    Returns:
      float32 [n*r,*size,C]; of integers, whole numbers in the range of their dtype.
    """
    repeats = len(box) // len(canvas)
    whole = jnp.iinfo(canvas.dtype) if jnp.issubdtype(canvas.dtype, jnp.integer) else None

    def rounded(x: jax.Array) -> jax.Array:
        return x if whole is None else jnp.round(x).clip(whole.min, whole.max)

    def one(canvas: jax.Array, box: jax.Array) -> jax.Array:
        left, top, width, height, flip = box
        columns = _weights(left, width, size[1], canvas.shape[1])
        columns = jnp.where(flip > 0, columns[::-1], columns)
        rows = _weights(top, height, size[0], canvas.shape[0])
        # Bands first: the sums are over the last two axes of a picture, and C is small.
        bands = jnp.moveaxis(canvas.astype(jnp.float32), -1, 0)
        across = jnp.einsum('chw,xw->chx', bands, columns, precision=jax.lax.Precision.HIGHEST)
        if canvas.dtype == jnp.uint8:
            across = rounded(across)
        down = jnp.einsum('chx,yh->cyx', across, rows, precision=jax.lax.Precision.HIGHEST)
        return jnp.moveaxis(rounded(down), 0, -1)

    views = jax.vmap(jax.vmap(one, (None, 0)))(canvas, box.reshape(len(canvas), repeats, 5))
    return views.reshape(len(box), *views.shape[2:])


def _weights(start: jax.Array, length: jax.Array, new: int, old: int) -> jax.Array:
    """Returns weights [new, old] of pixels; only `length` of the old ones, from `start`, count."""
    scale = length / new
    centre = start + (jnp.arange(new) + 0.5) * scale
    place = jnp.arange(old)
    weights = _cubic((place + 0.5 - centre[:, None]) / jnp.maximum(scale, 1.0))
    weights = jnp.where((place >= start) & (place < start + length), weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: jax.Array) -> jax.Array:
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


def normalize(
    images: Num[Array, 'B H W C'],
    *,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> Float32[Array, 'B H W C']:
    """Computes float32 (images / scale - mean) / std of [B,H,W,C] of any dtype, by channel."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) / scale - mean) / std
