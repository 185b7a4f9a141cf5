"""Detections at the size of the original image: boxes scaled, masks pasted, runs of pixels."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from mae_jax.models.detection.detector import Detections
from mae_jax.visualization.detection import Instances

THRESHOLD = 0.5
"""Probability from which a pixel belongs to an instance."""


def to_original(
    boxes: Float[np.ndarray, 'D 4'], size: tuple[int, int], original: tuple[int, int]
) -> Float32[np.ndarray, 'D 4']:
    """Scales boxes from a resized image to the original, and clips them to it.

    Args:
      boxes: in pixels of the resized image.
      size: its height and width, without padding.
      original: height and width of the original.
    """
    (height, width), (rows, columns) = original, size
    scale = np.array([width / columns, height / rows] * 2, np.float32)
    return np.clip(boxes * scale, 0, np.float32([width, height] * 2)).astype(np.float32)


def has_area(boxes: Float[np.ndarray, 'D 4']) -> Bool[np.ndarray, ' D']:
    """Returns which boxes are wider and higher than nothing."""
    return (boxes[:, 2:] > boxes[:, :2]).all(axis=1)


def instances_of(found: Detections, size: tuple[int, int], original: tuple[int, int]) -> Instances:
    """Returns the detections of one image at the size of the original.

    Args:
      found: fields of one image, NumPy arrays; classes are -1 where there is no detection.
      size: height and width of the image that was seen, without padding.
      original: those of the original.
    """
    boxes = to_original(found.boxes, size, original)
    kept = np.flatnonzero((found.classes >= 0) & has_area(boxes))
    masks = [paste(found.masks[number], boxes[number], original) for number in kept]
    masks = np.stack(masks) if masks else np.zeros((0, *original), np.uint8)
    return Instances(boxes[kept], found.classes[kept], masks.astype(bool), found.scores[kept])


def paste(
    mask: Float[np.ndarray, 'm m'], box: Float[np.ndarray, '4'], size: tuple[int, int]
) -> UInt8[np.ndarray, '{size[0]} {size[1]}']:
    """Enlarges a mask of probabilities to its box in an image: 1 where it is at least 1/2.

    Bilinear between the centres of pixels, as in detectron2; beyond its border a mask is 0.

    Args:
      mask: probabilities, of a square over the box.
      box: x0, y0, x1, y1 in pixels of the image, of some area.
      size: height and width of the image.

    Returns:
      An array in the order of columns, which `encode` takes without a copy.
    """
    x0, y0, x1, y1 = box.tolist()
    # No pixel whose centre is further outside than half a cell of the mask has any of it.
    rows, row_weights = _weights(y0, y1, mask.shape[0], size[0])
    columns, column_weights = _weights(x0, x1, mask.shape[1], size[1])
    pasted = np.zeros(size, np.uint8, order='F')
    pasted[rows, columns] = row_weights @ mask @ column_weights.T >= THRESHOLD
    return pasted


def _weights(
    start: float, end: float, cells: int, length: int
) -> tuple[slice, Float32[np.ndarray, 'n {cells}']]:
    """Returns the pixels of an axis that a box may cover, and their bilinear weights of cells."""
    first = max(int(np.floor(start)) - 1, 0)
    last = min(int(np.ceil(end)) + 1, length)
    centres = np.arange(first, last, dtype=np.float32) + np.float32(0.5)
    places = (centres - start) / (end - start) * cells - 0.5
    weights = np.maximum(1 - np.abs(places[:, None] - np.arange(cells)), 0)
    return slice(first, last), weights.astype(np.float32)


def encode(mask: UInt8[np.ndarray, 'H W']) -> dict[str, Any]:
    """Encodes a mask of 0 and 1 as COCO's compressed runs: {'size', 'counts'}, for JSON."""
    from pycocotools import mask as runs_of_pixels

    runs = runs_of_pixels.encode(np.asfortranarray(mask))
    return {'size': [int(side) for side in runs['size']], 'counts': runs['counts'].decode('ascii')}
