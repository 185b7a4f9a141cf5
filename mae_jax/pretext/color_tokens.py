"""Defines a simple tokenizer: the mean colour of a patch, quantised to one of 512.

    --config.target.name=token --config.target.codes=512 \
        --config.target.tokenizer=mae_jax.pretext.color_tokens:color_tokens
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

LEVELS = 8
"""Levels of each of red, green and blue."""
PATCH_SIZE = 8


def color_tokens(images: Float[Array, 'B H W 3']) -> Int32[Array, 'B H/8 W/8']:
    """Maps images, in [0, 1], to ids of 0 to 511, which is white."""
    batch, height, width, _ = images.shape
    rows, columns = height // PATCH_SIZE, width // PATCH_SIZE
    cells = images.reshape(batch, rows, PATCH_SIZE, columns, PATCH_SIZE, 3).mean(axis=(2, 4))
    levels = jnp.clip(cells * LEVELS, 0, LEVELS - 1).astype(jnp.int32)
    return levels @ jnp.array([LEVELS**2, LEVELS, 1])
