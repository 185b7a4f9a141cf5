"""Predicts images that are larger than those of training, and of several sizes.

Images lie at the upper left of canvases of one size. Sliding windows are placed as in
mmsegmentation: `stride` pixels apart, the last one of a row or column moved back to the border.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Float32, Int

Size = tuple[int, int]
STRIP = 32
"""Rows of enlarged logits in memory at once."""


def num_windows(length: int, window: int, stride: int) -> int:
    """Returns how many windows cover this many pixels."""
    return max(-((window - length) // stride), 0) + 1


class Windows(NamedTuple):
    """Windows along one axis of images of several lengths."""

    start: Int[Array, 'n B']
    used: Bool[Array, 'n B']
    """False where an image is shorter than its canvas and needs fewer windows."""


def place(length: Int[Array, ' B'], canvas: int, window: int, stride: int) -> Windows:
    """Places the windows of images that are `length` pixels long, on a canvas that holds them."""
    number = np.arange(num_windows(canvas, window, stride))[:, None]
    spare = jnp.maximum(length - window, 0)
    return Windows(jnp.minimum(number * stride, spare), number * stride < spare + stride)


def slide(
    predict: Callable[[Float[Array, 'B _h _w C']], Float32[Array, 'B _h _w K']],
    images: Float[ArrayLike, 'B H W C'],
    size: Int[ArrayLike, 'B 2'],
    window: Size,
    stride: Size,
) -> Float32[Array, 'B H W K']:
    """Averages the logits of all windows that cover a pixel.

    Args:
      predict: computes the logits of images of the size of a window.
      images: normalised; what lies beyond an image is replaced by 0.
      size: height and width of each image.
      window: height and width of a window; a smaller image is one window, padded.
      stride: between windows, at most their size.

    Returns:
      Logits; those beyond an image mean nothing.
    """
    images, size = jnp.asarray(images), jnp.asarray(size)
    height, width = images.shape[1:3]
    inside = [jnp.arange(side) < size[:, axis, None] for axis, side in enumerate((height, width))]
    images = jnp.where((inside[0][:, :, None] & inside[1][:, None])[..., None], images, 0)
    if (height, width) == tuple(window):
        return predict(images)
    missing = [max(w - side, 0) for w, side in zip(window, (height, width), strict=True)]
    images = jnp.pad(images, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
    axes = [
        place(size[:, axis], images.shape[1 + axis], window[axis], stride[axis]) for axis in (0, 1)
    ]

    def cut(array: Array, starts: tuple[Array, Array]) -> Array:
        start = (*starts, 0)
        return jax.lax.dynamic_slice(array, start, (*window, array.shape[-1]))

    def add(total: Array, logits: Array, starts: tuple[Array, Array]) -> Array:
        return jax.lax.dynamic_update_slice(total, cut(total, starts) + logits, (*starts, 0))

    def step(total: Array, numbers: Array) -> tuple[Array, None]:
        row, column = (
            Windows(*(x[n] for x in axis)) for axis, n in zip(axes, numbers, strict=True)
        )
        starts = row.start, column.start
        logits = predict(jax.vmap(cut)(images, starts))
        used = (row.used & column.used)[:, None, None, None]
        return jax.vmap(add)(total, jnp.where(used, logits, 0), starts), None

    numbers = np.indices([len(axis.start) for axis in axes]).reshape(2, -1).T
    classes = jax.eval_shape(predict, images[:, : window[0], : window[1]]).shape[-1]
    total = jnp.zeros((*images.shape[:3], classes), jnp.float32)
    total = jax.lax.scan(step, total, jnp.asarray(numbers))[0]
    rows, columns = (_coverage(axis, total.shape[1 + i], window[i]) for i, axis in enumerate(axes))
    return (total / (rows[:, :, None, None] * columns[:, None, :, None]))[:, :height, :width]


def _coverage(windows: Windows, canvas: int, window: int) -> Float32[Array, 'B {canvas}']:
    """Counts the windows over each row or column of pixels, as at least 1."""
    after = jnp.arange(canvas) - windows.start[..., None]
    inside = (after >= 0) & (after < window) & windows.used[..., None]
    return jnp.maximum(inside.sum(axis=0), 1).astype(jnp.float32)


def map_enlarged(
    function: Callable[[Int[Array, ''], Float32[Array, 'B W K']], Any],
    logits: Float32[ArrayLike, 'B _h _w K'],
    size: Int[ArrayLike, 'B 2'],
    new_size: Int[ArrayLike, 'B 2'],
    canvas: Size,
) -> Any:
    """Maps a function over the rows of logits that are resized, never all in memory at once.

    Resizing is PyTorch's bilinear one with align_corners=False, without antialiasing.

    Args:
      function: called with the number of a row, and its logits.
      logits: of images at the upper left.
      size: height and width of each image.
      new_size: those of each result.
      canvas: height and width that hold all results.

    Returns:
      What `function` returned, stacked: a tree of arrays [canvas[0], ...].
    """
    logits, size, new_size = map(jnp.asarray, (logits, size, new_size))
    columns = jax.vmap(lambda old, new: _sources(jnp.arange(canvas[1]), old, new))(
        size[:, 1], new_size[:, 1]
    )

    def one_row(row: Array) -> Any:
        rows = _sources(row, size[:, 0], new_size[:, 0])
        image = jnp.arange(len(logits))
        upper, lower = (logits[image, rows[i]] for i in (0, 1))
        across = upper + (lower - upper) * rows[2][:, None, None]
        left, right = (jnp.take_along_axis(across, columns[i][..., None], axis=1) for i in (0, 1))
        return function(row, left + (right - left) * columns[2][..., None])

    return jax.lax.map(one_row, jnp.arange(canvas[0]), batch_size=STRIP)


def _sources(place: Array, old: Array, new: Array) -> tuple[Array, Array, Array]:
    """Returns the two positions that a new one is computed from, and the share of the second."""
    source = jnp.maximum((place + 0.5) * (old / new) - 0.5, 0.0)
    low = jnp.minimum(source.astype(jnp.int32), old - 1)
    return low, jnp.minimum(low + 1, old - 1), jnp.maximum(source - low, 0.0)
