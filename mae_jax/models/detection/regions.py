"""What the heads of boxes and masks learn: proposals drawn, with their targets."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float32, Int, UInt8

from mae_jax.models.detection.boxes import encode
from mae_jax.models.detection.matching import match
from mae_jax.models.detection.options import DetectorOptions
from mae_jax.models.detection.proposals import Proposals
from mae_jax.models.detection.roi_align import roi_align
from mae_jax.models.detection.sampling import gather_samples, sample

MASK_SAMPLES = 4
"""Of a cell of a mask in each direction: 112 samples, as many as rows of the mask, for a box of the
size of the instance's, and 28 cells."""


class Regions(NamedTuple):
    """Proposals that the heads learn from, foreground first; they have no gradient."""

    boxes: Float32[Array, 'B S 4']
    valid: Bool[Array, 'B S']
    label: Int[Array, 'B S']
    """Class of the object; K for none."""
    deltas: Float32[Array, 'B S 4']
    """What the box head should return for the class; 0 without an object."""
    matched: Int[Array, 'B S']
    """Number of the object."""


def draw_regions(
    proposals: Proposals,
    boxes: Float32[ArrayLike, 'B N 4'],
    classes: Int[ArrayLike, 'B N'],
    noise: Float32[ArrayLike, 'B R'],
    options: DetectorOptions,
    num_classes: int,
) -> Regions:
    """Draws from proposals and boxes of the truth, which are proposals too, as in detectron2.

    Args:
      classes: -1 for padding.
      noise: uniform in [0, 1), for R, the proposals and the N boxes.
    """
    given, boxes, classes = jnp.asarray(classes) >= 0, jnp.asarray(boxes), jnp.asarray(classes)
    candidates = jnp.concatenate([proposals.boxes, boxes], axis=1)
    valid = jnp.concatenate([proposals.valid, given], axis=1)
    threshold, count = options.roi_threshold, options.roi_samples
    index, label = match(candidates, boxes, given, threshold, threshold)
    label = jnp.where(valid, label, -1)
    drawn = sample(label, noise, count, foreground_regions(options))
    places, valid = gather_samples(label, drawn, count)

    def of_places(x: Array) -> Array:
        at = places.reshape(*places.shape, *[1] * (x.ndim - 2))
        return jnp.take_along_axis(x, at, axis=1)

    matched, references = of_places(index), of_places(candidates)
    foreground = valid & (of_places(label) == 1)
    target = jnp.take_along_axis(boxes, matched[..., None], axis=1)
    # Both are replaced where there is nothing to code, for that no logarithm is infinite.
    unit = jnp.array([0.0, 0, 1, 1])
    safe, other = (jnp.where(foreground[..., None], x, unit) for x in (target, references))
    label = jnp.where(foreground, jnp.take_along_axis(classes, matched, axis=1), num_classes)
    deltas = encode(safe, other, options.box_weights)
    return Regions(references, valid, label, deltas, matched)


def foreground_regions(options: DetectorOptions) -> int:
    """Returns the largest number of foreground regions of an image."""
    return int(options.roi_samples * options.roi_positives)


def mask_targets(
    masks: UInt8[ArrayLike, 'B N M M'],
    boxes: Float32[ArrayLike, 'B N 4'],
    matched: Int[ArrayLike, 'B S'],
    regions: Float32[ArrayLike, 'B S 4'],
    size: int,
) -> Bool[Array, 'B S {size} {size}']:
    """Cuts regions from the masks of their objects, which are outside their boxes nowhere.

    Args:
      masks: 0 or 1, inside the objects' `boxes`.
      matched: number of the object of each region.
    """
    masks, matched = jnp.asarray(masks), jnp.asarray(matched)
    batch, count = matched.shape
    masks = jnp.take_along_axis(masks, matched[..., None, None], axis=1)
    side = masks.shape[-1]
    # A border of zeros, beyond which samples are zero too.
    masks = jnp.pad(masks.astype(jnp.float32), ((0, 0), (0, 0), (1, 1), (1, 1)))
    masks = masks.reshape(batch * count, side + 2, side + 2, 1)
    boxes = jnp.take_along_axis(jnp.asarray(boxes), matched[..., None], axis=1)
    corner, sides = jnp.tile(boxes[..., :2], 2), jnp.tile(boxes[..., 2:] - boxes[..., :2], 2)
    inside = (jnp.asarray(regions) - corner) / jnp.where(sides > 0, sides, 1) * side + 1
    cells = roi_align(masks, inside.reshape(-1, 1, 4), 1.0, size, MASK_SAMPLES)
    return cells.reshape(batch, count, size, size) >= 0.5
