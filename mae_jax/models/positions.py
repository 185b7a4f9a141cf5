"""Fixed sin-cos position tables."""

import numpy as np

from mae_jax.errors import UserError


def sincos_2d(dim: int, grid: tuple[int, int], cls_token: bool = True) -> np.ndarray:
    """The 2-D sin-cos table: for a patch in column x and row y, [sin x, cos x, sin y, cos y].

    Each quarter has the frequencies 10000^(-i / (dim/4)), as the sine-cosine table of "Attention
    Is All You Need" has for one dimension.

    Args:
      dim: width of the tokens.
      grid: rows and columns of patches.
      cls_token: put a row of zeros for the cls token first.

    Returns:
      float32 [1, N, dim], or [1, 1 + N, dim] with the cls token; patches are row-major.

    Raises:
      UserError: 4 does not divide `dim`.
    """
    if dim % 4:
        raise UserError(f'Positions need a width that 4 divides, not {dim}: choose another width.')
    frequencies = 10000.0 ** -(np.arange(dim // 4) / (dim / 4))
    rows, columns = np.indices(grid, dtype=np.float64).reshape(2, -1, 1)
    x, y = columns * frequencies, rows * frequencies
    table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    if cls_token:
        table = np.concatenate([np.zeros((1, dim)), table])
    return table[None].astype(np.float32)
