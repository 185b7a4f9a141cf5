"""Sin-cos position tables, and resizing a table to another grid of patches."""

import numpy as np
from jaxtyping import ArrayLike, Float, Float32

from mae_jax.errors import UserError


def sincos_2d(
    dim: int, grid: tuple[int, int], cls_token: bool = True
) -> Float32[np.ndarray, '1 T {dim}']:
    """Computes the 2-D sin-cos table: [sin x, cos x, sin y, cos y] for column x and row y.

    Each quarter has the frequencies 10000^(-i / (dim/4)), as the table of "Attention Is All You
    Need" has for one dimension.

    Args:
      dim: width of the tokens.
      grid: rows and columns of patches, N in all.
      cls_token: whether the first row is one of zeros, for the cls token.

    Returns:
      A row for each of T tokens, N or 1 + N with the cls token; patches are row-major.

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


def resize_positions(
    table: Float[ArrayLike, '1 T D'], old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float32[np.ndarray, '1 M D']:
    """Resizes a position table to another resolution, as the original does for fine-tuning.

    That is PyTorch's bicubic interpolation (align_corners=False): Keys' kernel with a = -0.75, of
    the same width whether it enlarges or shrinks, and borders repeated. `jax.image.resize` has
    a = -0.5, widens the kernel to shrink, and leaves out what lies beyond a border.

    Args:
      table: the first row, the cls token's, stays as it is; a table may have none.
      old_grid: rows and columns of the patches of `table`.
      new_grid: rows and columns of the patches of the result, M of them, or M - 1.

    Raises:
      UserError: the table does not have the shape of `old_grid`.
    """
    table = np.asarray(table, np.float32)
    first = table.shape[1] - old_grid[0] * old_grid[1] if table.ndim == 3 else None
    if first not in (0, 1) or len(table) != 1:
        raise UserError(
            f'A position table of shape {list(table.shape)} does not belong to {old_grid[0]} x '
            f'{old_grid[1]} patches and a cls token: give the grid it was trained with.'
        )
    if tuple(old_grid) == tuple(new_grid):
        return table
    cls = table[:, :first]
    patches = table[0, first:].reshape(*old_grid, -1).astype(np.float64)
    rows, columns = (
        _bicubic_weights(old, new) for old, new in zip(old_grid, new_grid, strict=True)
    )
    patches = np.einsum('Rr,Cc,rcd->RCd', rows, columns, patches, optimize=True)
    patches = patches.reshape(1, -1, table.shape[-1]).astype(np.float32)
    return np.concatenate([cls, patches], axis=1)


def _bicubic_weights(old: int, new: int, a: float = -0.75) -> Float[np.ndarray, '{new} {old}']:
    """Computes the weights of bicubic interpolation along one axis, between pixel centres."""
    positions = (np.arange(new) + 0.5) * old / new - 0.5
    taps = np.floor(positions)[:, None].astype(int) + np.arange(-1, 3)
    x = np.abs(positions[:, None] - taps)
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * (x**3 - 5 * x**2 + 8 * x - 4)
    weights = np.zeros((new, old))
    taps_inside = np.clip(taps, 0, old - 1)
    np.add.at(weights, (np.arange(new)[:, None], taps_inside), np.where(x <= 1, near, far))
    return weights
