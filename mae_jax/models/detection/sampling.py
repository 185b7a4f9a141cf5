"""Draws which candidates count in a loss, a fixed number at most."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float32, Int

from mae_jax.models.detection.rows import top_k


def sample(
    label: Int[ArrayLike, 'B A'],
    noise: Float32[ArrayLike, 'B A'],
    count: int,
    positives: int,
) -> Bool[Array, 'B A']:
    """Draws at most `positives` positive candidates, and background up to `count` in all.

    Args:
      label: 1 for positive, 0 for background, -1 for what is not drawn.
      noise: uniform in [0, 1); the smallest are drawn.
    """
    label, noise = jnp.asarray(label), jnp.asarray(noise)
    positive = _smallest(label == 1, noise, positives, positives)
    missing = count - positive.sum(axis=1)
    return positive | _smallest(label == 0, noise, missing, count)


def _smallest(
    among: Bool[Array, 'B A'],
    noise: Float32[Array, 'B A'],
    number: Int[Array, ' B'] | int,
    most: int,
) -> Bool[Array, 'B A']:
    """Selects the `number` smallest, at most `most`; the first of equal ones."""
    width = among.shape[1]
    if not most:
        return jnp.zeros_like(among)
    noise = jnp.where(among, noise, 2)
    ranked, places = top_k(-noise, min(most, width))
    last = jnp.broadcast_to(jnp.minimum(number, ranked.shape[1]) - 1, among.shape[:1])[:, None]
    limit, place = (jnp.take_along_axis(x, jnp.maximum(last, 0), axis=1) for x in (ranked, places))
    is_before = (-noise > limit) | ((-noise == limit) & (jnp.arange(width) <= place))
    return among & is_before & (last >= 0)


def gather_samples(
    label: Int[ArrayLike, 'B A'], drawn: Bool[ArrayLike, 'B A'], count: int
) -> tuple[Int[Array, 'B {count}'], Bool[Array, 'B {count}']]:
    """Returns the indices of what was drawn, positive ones first, and which of them are valid."""
    rank = jnp.where(jnp.asarray(drawn), jnp.asarray(label) + 1, 0)
    missing = max(count - rank.shape[1], 0)
    rank, index = top_k(jnp.pad(rank, ((0, 0), (0, missing))), count)
    return jnp.where(rank > 0, index, 0), rank > 0
