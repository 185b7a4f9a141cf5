"""Assigns boxes of the truth to anchors or proposals, by their overlap."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float32, Int

from mae_jax.models.detection.boxes import iou

ROUNDING = 1e-6
"""Share by which overlaps may differ and count as equal."""


class Matches(NamedTuple):
    """Which box each candidate belongs to."""

    index: Int[Array, 'B A']
    """Of the box that overlaps most, the first of equal ones; 0 where none does."""
    label: Int[Array, 'B A']
    """1: positive; 0: background; -1: neither."""


def match(
    candidates: Float32[ArrayLike, '#B A 4'],
    boxes: Float32[ArrayLike, 'B N 4'],
    valid: Bool[ArrayLike, 'B N'],
    low: float,
    high: float,
    allow_low_quality: bool = False,
) -> Matches:
    """Labels candidates by their largest IoU with a box.

    A candidate is background below `low`, positive from `high` on, and neither between.

    Args:
      candidates: anchors, the same for all images, or proposals.
      boxes: of the truth.
      valid: which of them are no padding.
      allow_low_quality: whether those that overlap a box most are positive too, whatever their
        IoU, so that every box has one (Faster R-CNN, arXiv 1506.01497, section 3.1.2). All that
        are equal but for rounding are: XLA may compute an overlap twice, and differently.
    """
    overlaps = jnp.where(jnp.asarray(valid)[..., None], iou(boxes, candidates), 0)
    largest = overlaps.max(axis=1)
    label = jnp.where(largest >= high, 1, jnp.where(largest >= low, -1, 0))
    if allow_low_quality:
        most = overlaps.max(axis=2, keepdims=True)
        is_best = (overlaps >= most * (1 - ROUNDING)) & (most > 0)
        label = jnp.where(is_best.any(axis=1), 1, label)
    return Matches(overlaps.argmax(axis=1), label)
