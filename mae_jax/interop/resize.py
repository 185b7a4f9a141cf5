"""Resizes what an encoder has learned of positions to another grid of patches."""

import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from mae_jax.models.options import EncoderOptions
from mae_jax.models.positions import resize_positions
from mae_jax.models.relative import resize_offsets, resize_table


def resize_encoder(
    params: Mapping[str, Float[np.ndarray, '...']],
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    options: EncoderOptions,
) -> dict[str, Float[np.ndarray, '...']]:
    """Returns those of an encoder's parameters that depend on the grid, resized.

    Absolute positions as in the original, bicubic; BEiT's tables on a geometric grid, and ViTDet's
    embeddings linearly, as these do. Windows stay as large as they are, and so do theirs.

    Args:
      params: of an encoder by their names in it, such as 'blocks/block_0/norm1/scale'.
      old_grid, new_grid: rows and columns of patches.
      options: of the encoder.

    Raises:
      UserError: a table does not have the size of `old_grid`.
    """
    resized = {}
    for name, array in params.items():
        block, leaf = re.match(r'blocks/block_(\d+)/', name), name.rpartition('/')[2]
        if block and options.window_of(int(block[1])):
            continue
        if name == 'pos_embed':
            resized[name] = resize_positions(array, old_grid, new_grid)
        elif leaf == 'relative_table':
            resized[name] = resize_table(array, old_grid, new_grid)
        elif leaf in ('rel_pos_h', 'rel_pos_w'):
            resized[name] = resize_offsets(array, new_grid[leaf == 'rel_pos_w'])
    return resized
