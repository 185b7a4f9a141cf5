"""Pictures of segmentations: the class of every pixel in the colour of the class."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Integer

from mae_jax.visualization.drawing import Columns, Pixels, to_pixels

Colours = tuple[tuple[int, int, int], ...]
"""Red, green and blue of every class, 0 to 255."""
NO_CLASS = (255, 255, 255)
"""The colour of pixels without a label, and of what lies beyond an image."""


def coloured(classes: Integer[np.ndarray, 'B H W'], colours: Colours) -> Pixels:
    """Draws every pixel in the colour of its class; numbers that are none, in `NO_CLASS`."""
    table = np.array([*colours, NO_CLASS], np.uint8)
    return table[np.minimum(classes, len(colours))]


def segmentation_columns(
    images: Float[np.ndarray, 'B H W C'],
    predicted: Int[np.ndarray, 'B H W'],
    size: Int[np.ndarray, 'B 2'],
    colours: Colours,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    truth: tuple[Integer[np.ndarray, 'B Hm Wm'], Int[np.ndarray, 'B 2']] | None = None,
) -> Columns:
    """Draws image, truth (if it is given) and prediction.

    Args:
      images: normalised, at the upper left of a canvas.
      predicted: the class of each of their pixels.
      size: height and width of each image.
      colours: of the classes.
      mean, std: as of `to_pixels`.
      truth: masks, at the upper left of a canvas, and their heights and widths; they are drawn at
        the size of the images.
    """
    columns = {'image': to_pixels(images, mean, std)}
    if truth is not None:
        columns['truth'] = coloured(_resized(*truth, size, images.shape[1:3]), colours)
    columns['prediction'] = coloured(predicted, colours)
    largest = size.max(axis=0)
    for number, (height, width) in enumerate(size):
        for column in columns.values():
            column[number, height:] = column[number, :, width:] = NO_CLASS
    return {title: column[:, : largest[0], : largest[1]] for title, column in columns.items()}


def _resized(
    masks: Integer[np.ndarray, 'B Hm Wm'],
    old: Int[np.ndarray, 'B 2'],
    new: Int[np.ndarray, 'B 2'],
    canvas: tuple[int, int],
) -> Integer[np.ndarray, 'B H W']:
    """Resizes each mask to the size of its image, by the nearest pixel."""
    resized = np.zeros((len(masks), *canvas), masks.dtype)
    for number, (mask, before, after) in enumerate(zip(masks, old, new, strict=True)):
        rows, columns = (
            ((np.arange(n) + 0.5) * o / n).astype(int) for o, n in zip(before, after, strict=True)
        )
        resized[number, : after[0], : after[1]] = mask[np.ix_(rows, columns)]
    return resized
