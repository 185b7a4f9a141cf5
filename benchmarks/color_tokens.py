"""A tokenizer of one's own, the simplest there is: a patch's mean colour, as one of 512.

    --config.target.name=token --config.target.codes=512 \
        --config.target.tokenizer=benchmarks.color_tokens:color_tokens
"""

import jax
import jax.numpy as jnp

LEVELS = 8
"""Of red, green and blue each."""
PATCH_SIZE = 8


def color_tokens(images: jax.Array) -> jax.Array:
    """float [B, H, W, 3] in [0, 1] -> int32 [B, H / 8, W / 8], 0 (black) to 511 (white)."""
    batch, height, width, _ = images.shape
    rows, columns = height // PATCH_SIZE, width // PATCH_SIZE
    cells = images.reshape(batch, rows, PATCH_SIZE, columns, PATCH_SIZE, 3).mean(axis=(2, 4))
    levels = jnp.clip(cells * LEVELS, 0, LEVELS - 1).astype(jnp.int32)
    return levels @ jnp.array([LEVELS**2, LEVELS, 1])
