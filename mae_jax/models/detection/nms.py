"""Non-maximum suppression with static shapes, equal to torchvision's for every threshold.

A box is suppressed by those of a greater score that are not suppressed themselves, and that overlap
it more than the threshold.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float32, Int

from mae_jax.models.detection.boxes import iou


def survivors(
    boxes: Float32[ArrayLike, '*S N 4'], valid: Bool[ArrayLike, '*S N'], threshold: float
) -> Bool[Array, '*S N']:
    """Returns which boxes are not suppressed.

    Decides about all of them at once, until nothing changes: after the i-th round the first i are
    as they stay, and mostly a few rounds do. N^2 bytes hold which box may suppress which.

    Args:
      boxes: by descending score.
      valid: which of them take part; the others are not returned.
    """
    boxes, valid = jnp.asarray(boxes), jnp.asarray(valid)
    number = jnp.arange(boxes.shape[-2])
    suppresses = (iou(boxes, boxes) > threshold) & (number[:, None] < number)

    def decide(state: tuple[Array, Array]) -> tuple[Array, Array]:
        kept, _ = state
        return valid & ~(kept[..., :, None] & suppresses).any(axis=-2), kept

    state = decide((valid, valid))
    return lax.while_loop(lambda state: (state[0] != state[1]).any(), decide, state)[0]


class Picked(NamedTuple):
    """Boxes that are not suppressed, by descending score; 0 and False after the last."""

    index: Int[Array, 'B D']
    valid: Bool[Array, 'B D']


def pick(
    boxes: Float32[ArrayLike, 'B N 4'],
    scores: Float32[ArrayLike, 'B N'],
    groups: Int[ArrayLike, '#B N'],
    valid: Bool[ArrayLike, 'B N'],
    threshold: float,
    count: int,
) -> Picked:
    """Returns the `count` best boxes that are not suppressed within their groups.

    Picks them one by one, which takes no memory but that of the boxes: for few of very many.

    Args:
      scores: finite.
      groups: boxes of different ones do not suppress each other: classes.
      valid: which boxes take part.
    """
    boxes, groups = jnp.asarray(boxes), jnp.broadcast_to(groups, scores.shape)

    def step(scores: Array, _: None) -> tuple[Array, tuple[Array, Array]]:
        index = scores.argmax(axis=1, keepdims=True)
        is_left = jnp.take_along_axis(scores, index, axis=1) > -jnp.inf
        box = jnp.take_along_axis(boxes, index[..., None], axis=1)
        group = jnp.take_along_axis(groups, index, axis=1)
        gone = (groups == group) & (iou(box, boxes)[:, 0] > threshold)
        gone |= jnp.arange(boxes.shape[1]) == index
        return jnp.where(gone, -jnp.inf, scores), (index[:, 0], is_left[:, 0])

    scores = jnp.where(jnp.asarray(valid), scores, -jnp.inf)
    _, (index, is_left) = lax.scan(step, scores, length=count)
    return Picked(jnp.where(is_left, index, 0).T, is_left.T)
