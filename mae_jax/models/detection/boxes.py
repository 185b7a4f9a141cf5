"""Boxes: areas, overlap, clipping, and their coding relative to other boxes.

All are float32 (x0, y0, x1, y1), the last axis of an array.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float32, Int

LARGEST_LOG = math.log(1000 / 16)
"""Bound of the logarithm by which decoding enlarges a side, as in detectron2 and torchvision."""


def area(boxes: Float32[ArrayLike, '*S 4']) -> Float32[Array, '*S']:
    """Computes areas, 0 where an edge is on the wrong side of the other."""
    boxes = jnp.asarray(boxes)
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return jnp.maximum(width, 0) * jnp.maximum(height, 0)


def iou(
    boxes: Float32[ArrayLike, '*#S N 4'], others: Float32[ArrayLike, '*#S M 4']
) -> Float32[Array, '... N M']:
    """Computes the intersection over the union of every box with every other, 0 of empty ones."""
    boxes, others = jnp.asarray(boxes)[..., :, None, :], jnp.asarray(others)[..., None, :, :]
    corners = jnp.maximum(boxes[..., :2], others[..., :2])
    sides = jnp.maximum(jnp.minimum(boxes[..., 2:], others[..., 2:]) - corners, 0)
    shared = sides[..., 0] * sides[..., 1]
    union = area(boxes) + area(others) - shared
    return jnp.where(shared > 0, shared / union, 0)


def clip(
    boxes: Float32[ArrayLike, 'B N 4'], size: Int[ArrayLike, 'B 2']
) -> Float32[Array, 'B N 4']:
    """Clips boxes to images of (height, width)."""
    limits = jnp.tile(jnp.asarray(size, jnp.float32)[:, None, ::-1], 2)
    return jnp.clip(jnp.asarray(boxes), 0, limits)


def is_filled(boxes: Float32[ArrayLike, '*S 4']) -> Bool[Array, '*S']:
    """Returns whether boxes have finite edges, and a width and height above 0."""
    boxes = jnp.asarray(boxes)
    return jnp.isfinite(boxes).all(axis=-1) & (boxes[..., 2:] > boxes[..., :2]).all(axis=-1)


def encode(
    boxes: Float32[ArrayLike, '*#S 4'],
    references: Float32[ArrayLike, '*#S 4'],
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Float32[Array, '... 4']:
    """Codes boxes relative to references (R-CNN, arXiv 1311.2524, appendix C).

    That is the offset of the centre in widths and heights of the reference, and the logarithms of
    the ratios of widths and heights, each times its weight. Neither may be empty.
    """
    centres, sides = _centres_and_sides(boxes)
    of_centres, of_sides = _centres_and_sides(references)
    deltas = jnp.concatenate([(centres - of_centres) / of_sides, jnp.log(sides / of_sides)], -1)
    return deltas * jnp.asarray(weights, jnp.float32)


def decode(
    deltas: Float32[ArrayLike, '*#S 4'],
    references: Float32[ArrayLike, '*#S 4'],
    weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
) -> Float32[Array, '... 4']:
    """Inverts `encode`; no side becomes more than 62.5 times that of the reference."""
    deltas = jnp.asarray(deltas, jnp.float32) / jnp.asarray(weights, jnp.float32)
    of_centres, of_sides = _centres_and_sides(references)
    centres = deltas[..., :2] * of_sides + of_centres
    halves = 0.5 * jnp.exp(jnp.minimum(deltas[..., 2:], LARGEST_LOG)) * of_sides
    return jnp.concatenate([centres - halves, centres + halves], -1)


def _centres_and_sides(
    boxes: Float32[ArrayLike, '*S 4'],
) -> tuple[Float32[Array, '*S 2'], Float32[Array, '*S 2']]:
    boxes = jnp.asarray(boxes, jnp.float32)
    sides = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sides, sides
