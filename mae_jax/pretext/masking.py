"""What is hidden: noise for each patch, and the mask that follows from it (paper, section 3).

The noise decides everything: the patches of the smallest noise are kept. Whoever passes the same
noise gets the same mask, in the original implementation too.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mae_jax.errors import UserError


class Masking(NamedTuple):
    """Which of N patches are kept, for each of B examples."""

    ids_keep: jax.Array
    """int32 [B, K]: the patches that the encoder sees, in the order it sees them."""
    ids_restore: jax.Array
    """int32 [B, N]: where each patch lies in the sequence of kept, then hidden patches."""
    mask: jax.Array
    """bool [B, N]: True where a patch is hidden."""


def num_kept(num_patches: int, ratio: float) -> int:
    """The number of visible patches, K = floor(N * (1 - ratio)), free of float error.

    Raises:
      UserError: the ratio is outside [0, 1), or nothing stays visible, or nothing is hidden.
    """
    if not 0 <= ratio < 1:
        raise UserError(f'mask.ratio={ratio} is not in [0, 1): the paper hides 0.75 of an image.')
    # 1 - 0.9 is 0.09999999999999998 in binary: without the margin, 10 patches would keep none.
    kept = math.floor(num_patches * (1 - ratio) + 1e-6)
    if kept == 0:
        raise UserError(
            f'mask.ratio={ratio} leaves none of the {num_patches} patches visible: choose a '
            'smaller mask.ratio or a smaller model.patch_size.'
        )
    if kept == num_patches:
        raise UserError(
            f'mask.ratio={ratio} hides none of the {num_patches} patches, and the loss is that '
            'of the hidden ones: choose a larger mask.ratio.'
        )
    return kept


def _random(key: jax.Array, batch_size: int, num_patches: int) -> jax.Array:
    return jax.random.uniform(key, (batch_size, num_patches), jnp.float32)


STRATEGIES = {'random': _random}


def draw_noise(
    key: jax.Array, batch_size: int, num_patches: int, strategy: str = 'random'
) -> jax.Array:
    """Noise in [0, 1), float32 [B, N]: a draw of its own for each example.

    Raises:
      UserError: unknown strategy.
    """
    if strategy not in STRATEGIES:
        raise UserError(f'mask.strategy={strategy!r} is unknown: use {" | ".join(STRATEGIES)}.')
    return STRATEGIES[strategy](key, batch_size, num_patches)


def masking_from_noise(noise: jax.Array, num_kept: int) -> Masking:
    """Keeps the `num_kept` patches of smallest noise of each example; ties go to the first patch.

    Args:
      noise: float [B, N].
      num_kept: K, a Python integer, so that shapes are static.
    """
    ids_shuffle = jnp.argsort(noise, axis=1, stable=True).astype(jnp.int32)
    ids_restore = jnp.argsort(ids_shuffle, axis=1).astype(jnp.int32)
    return Masking(ids_shuffle[:, :num_kept], ids_restore, ids_restore >= num_kept)
