"""Batches on the device: uint8 rows -> what a model is given."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def normalize(
    images: jax.Array, *, scale: float, mean: Sequence[float], std: Sequence[float]
) -> jax.Array:
    """[B,H,W,C] of any dtype -> float32 (images / scale - mean) / std, one mean a channel."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) / scale - mean) / std
