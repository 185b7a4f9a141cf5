"""The region proposal network (Faster R-CNN, arXiv 1506.01497): boxes that may hold an object."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float, Float32, Int

from mae_jax.models.dense import Dense
from mae_jax.models.detection.boxes import clip, decode, encode, is_filled
from mae_jax.models.detection.losses import objectness_loss, proposal_box_loss
from mae_jax.models.detection.matching import match
from mae_jax.models.detection.nms import survivors
from mae_jax.models.detection.options import DetectorOptions
from mae_jax.models.detection.rows import by_rows, top_k
from mae_jax.models.detection.sampling import sample


class ProposalHead(nn.Module):
    """Objectness and box of every anchor, by layers that all maps share."""

    options: DetectorOptions = DetectorOptions()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Sequence[Float[ArrayLike, 'B _h _w D']]
    ) -> tuple[list[Float32[Array, 'B _A']], list[Float32[Array, 'B _A 4']]]:
        """Computes logits and deltas of the anchors of each map, in the order of `grid_anchors`."""
        options, init = self.options, nn.initializers.normal(0.01)
        shapes = len(options.anchor_ratios)
        convolutions = [
            nn.Conv(options.channels, (3, 3), dtype=self.dtype, kernel_init=init, name=f'conv_{i}')
            for i in range(options.proposal_convolutions)
        ]
        objectness, boxes = (
            Dense(width, self.dtype, jnp.float32, init, name=name)
            for name, width in (('objectness', shapes), ('deltas', 4 * shapes))
        )
        logits, deltas = [], []
        for x in maps:
            for convolution in convolutions:
                x = nn.relu(convolution(x))
            logits.append(objectness(x).reshape(len(x), -1))
            deltas.append(boxes(x).reshape(len(x), -1, 4))
        return logits, deltas

    def flops(self, grids: Sequence[tuple[int, int]]) -> float:
        """Counts the products, forward, for maps of these rows and columns."""
        options, ours = self.options, self.options.channels
        convolutions = 9 * options.proposal_convolutions * ours**2
        cells = sum(rows * columns for rows, columns in grids)
        return 2.0 * cells * (convolutions + 5 * len(options.anchor_ratios) * ours)


class Proposals(NamedTuple):
    """Boxes by descending objectness; after the last of an image all is 0."""

    boxes: Float32[Array, 'B R 4']
    logits: Float32[Array, 'B R']
    valid: Bool[Array, 'B R']


def count_proposals(anchors: Sequence[int], options: DetectorOptions, train: bool) -> int:
    """Returns R, the number of proposals from maps with so many anchors."""
    before = options.before_nms_train if train else options.before_nms
    widest = min(max(anchors), before)
    return min(widest * len(anchors), options.after_nms)


def propose(
    logits: Sequence[Float32[ArrayLike, 'B _A']],
    deltas: Sequence[Float32[ArrayLike, 'B _A 4']],
    anchors: Sequence[Float32[ArrayLike, '_A 4']],
    size: Int[ArrayLike, 'B 2'],
    options: DetectorOptions,
    train: bool,
) -> Proposals:
    """Returns the best boxes of all maps, clipped to the images, after NMS within each map.

    They have no gradient. Boxes that are empty or not finite are left out.

    Args:
      size: height and width of the images.
    """
    before = options.before_nms_train if train else options.before_nms
    widest = min(max(x.shape[1] for x in logits), before)
    levels = [
        _best(*level, size, min(before, level[0].shape[1]), widest)
        for level in zip(logits, deltas, anchors, strict=True)
    ]
    boxes, scores = (jnp.stack(x, axis=1) for x in zip(*levels, strict=True))
    suppress = partial(survivors, threshold=options.proposal_nms)
    valid = by_rows(suppress, boxes, jnp.isfinite(scores))
    batch, count = len(boxes), count_proposals([x.shape[1] for x in logits], options, train)
    scores = jnp.where(valid, scores, -jnp.inf).reshape(batch, -1)
    scores, index = top_k(scores, count)
    boxes = jnp.take_along_axis(boxes.reshape(batch, -1, 4), index[..., None], axis=1)
    valid = scores > -jnp.inf
    return Proposals(jnp.where(valid[..., None], boxes, 0), jnp.where(valid, scores, 0), valid)


def _best(
    logits: Float32[ArrayLike, 'B A'],
    deltas: Float32[ArrayLike, 'B A 4'],
    anchors: Float32[ArrayLike, 'A 4'],
    size: Int[ArrayLike, 'B 2'],
    count: int,
    width: int,
) -> tuple[Float32[Array, 'B {width} 4'], Float32[Array, 'B {width}']]:
    """Returns the boxes of the largest logits of a map, padded to `width`; -inf: no box."""
    logits, deltas = lax.stop_gradient((logits, deltas))
    scores, index = top_k(logits, count)
    deltas = jnp.take_along_axis(deltas, index[..., None], axis=1)
    boxes = decode(deltas, jnp.asarray(anchors)[index])
    is_finite = jnp.isfinite(boxes).all(axis=-1) & jnp.isfinite(scores)
    boxes = clip(boxes, size)
    valid = is_finite & is_filled(boxes)
    boxes, scores = jnp.where(valid[..., None], boxes, 0), jnp.where(valid, scores, -jnp.inf)
    missing = (0, width - count)
    boxes = jnp.pad(boxes, ((0, 0), missing, (0, 0)))
    return boxes, jnp.pad(scores, ((0, 0), missing), constant_values=-jnp.inf)


def proposal_losses(
    logits: Float32[ArrayLike, 'B A'],
    deltas: Float32[ArrayLike, 'B A 4'],
    anchors: Float32[ArrayLike, 'A 4'],
    boxes: Float32[ArrayLike, 'B N 4'],
    valid: Bool[ArrayLike, 'B N'],
    noise: Float32[ArrayLike, 'B A'],
    options: DetectorOptions,
) -> dict[str, Float32[Array, '']]:
    """Computes {'objectness', 'proposal_box'} over the anchors that `noise` draws.

    Args:
      boxes: of the truth.
      valid: which of them are no padding.
      noise: uniform in [0, 1).
    """
    thresholds, count = options.anchor_thresholds, options.anchor_samples
    anchors = jnp.asarray(anchors)[None]
    index, label = match(anchors, boxes, valid, *thresholds, allow_low_quality=True)
    drawn = sample(label, noise, count, int(count * options.anchor_positives))
    positive = drawn & (label == 1)
    matched = jnp.take_along_axis(jnp.asarray(boxes), index[..., None], axis=1)
    target = encode(jnp.where(positive[..., None], matched, anchors), anchors)
    return {
        'objectness': objectness_loss(logits, label, drawn, count),
        'proposal_box': proposal_box_loss(deltas, target, positive, count),
    }
