"""What must be predicted for each patch (paper, section 3, "Reconstruction target").

A target is a function of the patches, float32 [B, N, P*P*C] -> [B, N, P*P*C].
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mae_jax.errors import UserError


def patch_statistics(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of each patch over its pixels and channels.

    Args:
      patches: float32 [B, N, P*P*C].

    Returns:
      mean and std, both [B, N, 1]. The variance is the unbiased one, and 1e-6 is added to it
      inside the root, as in the original: `target * std + mean` undoes the normalisation.

    Raises:
      UserError: patches of a single value, which have no variance.
    """
    if patches.shape[-1] < 2:
        raise UserError(
            "target.name='normalized_pixel' needs patches of two or more values: use a larger "
            "model.patch_size, or target.name='pixel'."
        )
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    std = jnp.sqrt(jnp.var(patches, axis=-1, keepdims=True, ddof=1) + 1e-6)
    return mean, std


def pixel(patches: jax.Array) -> jax.Array:
    """The pixels themselves."""
    return patches


def normalized_pixel(patches: jax.Array) -> jax.Array:
    """The pixels, normalised by the mean and standard deviation of their own patch."""
    mean, std = patch_statistics(patches)
    return (patches - mean) / std


TARGETS = {'pixel': pixel, 'normalized_pixel': normalized_pixel}


def get_target(name: str) -> Callable[[jax.Array], jax.Array]:
    """The target of that name.

    Raises:
      UserError: there is none.
    """
    if name not in TARGETS:
        raise UserError(f'target.name={name!r} is unknown: use {" | ".join(TARGETS)}.')
    return TARGETS[name]
