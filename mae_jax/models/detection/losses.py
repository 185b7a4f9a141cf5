"""The five losses of Mask R-CNN, with detectron2's normalisers, over the whole batch.

Classes are selected by masked sums: the gradient of an index would be a scatter.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Bool, Float32, Int


def objectness_loss(
    logits: Float32[ArrayLike, 'B A'],
    label: Int[ArrayLike, 'B A'],
    drawn: Bool[ArrayLike, 'B A'],
    samples: int,
) -> Float32[Array, '']:
    """Computes the binary cross-entropy of the anchors drawn, their sum over B * samples.

    Args:
      label: 1 for anchors that hold an object.
      samples: anchors of an image that are drawn at most.
    """
    entropies = optax.sigmoid_binary_cross_entropy(logits, label == 1)
    return jnp.where(drawn, entropies, 0).sum() / (samples * len(logits))


def proposal_box_loss(
    deltas: Float32[ArrayLike, 'B A 4'],
    target: Float32[ArrayLike, 'B A 4'],
    positive: Bool[ArrayLike, 'B A'],
    samples: int,
) -> Float32[Array, '']:
    """Computes the L1 distance of positive anchors drawn, their sum over B * samples."""
    return _distances(deltas, target, positive).sum() / (samples * len(deltas))


def class_loss(
    logits: Float32[ArrayLike, 'B R C'], label: Int[ArrayLike, 'B R'], valid: Bool[ArrayLike, 'B R']
) -> Float32[Array, '']:
    """Computes the cross-entropy, mean over valid proposals.

    Args:
      label: one of C classes, the last of which is no object.
    """
    of_class = _of_class(logits[..., None], label)[..., 0]
    entropies = jax.nn.logsumexp(logits, axis=-1) - of_class
    return jnp.where(valid, entropies, 0).sum() / _count(valid)


def box_loss(
    deltas: Float32[ArrayLike, 'B R K 4'],
    target: Float32[ArrayLike, 'B R 4'],
    label: Int[ArrayLike, 'B R'],
    valid: Bool[ArrayLike, 'B R'],
) -> Float32[Array, '']:
    """Computes the L1 distance of the deltas of foreground, their sum over all valid proposals.

    Args:
      label: one of K classes, whose deltas count, or K for no object.
    """
    foreground = valid & (label < deltas.shape[2])
    distances = _distances(_of_class(deltas, label), target, foreground)
    return distances.sum() / _count(valid)


def mask_loss(
    logits: Float32[ArrayLike, 'B R m m K'],
    target: Bool[ArrayLike, 'B R m m'],
    label: Int[ArrayLike, 'B R'],
    foreground: Bool[ArrayLike, 'B R'],
) -> Float32[Array, '']:
    """Computes the binary cross-entropy of the class's masks, mean over pixels of foreground."""
    is_class = label[..., None, None, None] == jnp.arange(logits.shape[-1])
    of_class = jnp.where(is_class, logits, 0).sum(axis=-1)
    entropies = optax.sigmoid_binary_cross_entropy(of_class, target)
    return jnp.where(foreground, entropies.mean(axis=(2, 3)), 0).sum() / _count(foreground)


def _distances(
    deltas: Float32[ArrayLike, 'B R 4'],
    target: Float32[ArrayLike, 'B R 4'],
    counted: Bool[ArrayLike, 'B R'],
) -> Float32[Array, 'B R 4']:
    return jnp.where(counted[..., None], jnp.abs(deltas - target), 0)


def _of_class(
    values: Float32[ArrayLike, 'B R K D'], label: Int[ArrayLike, 'B R']
) -> Float32[Array, 'B R D']:
    is_class = label[..., None] == jnp.arange(values.shape[2])
    return jnp.where(is_class[..., None], values, 0).sum(axis=2)


def _count(valid: Bool[ArrayLike, 'B R']) -> Int[Array, '']:
    return jnp.maximum(jnp.sum(valid), 1)
