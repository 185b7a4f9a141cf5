"""Every key is a function of the seed, a purpose and a step; nothing random is stored."""

import zlib

import jax


def key_for(seed: int, purpose: str, step: int | jax.Array = 0) -> jax.Array:
    """The key of one purpose ('init', 'train', 'evaluate', ...) at one step.

    Purposes are folded in by the CRC of their name, so that a new one never moves the others.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
    return jax.random.fold_in(key, step)
