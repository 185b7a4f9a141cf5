"""Windows: attention within squares of patches instead of over all (ViTDet, arXiv 2203.16527)."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def to_windows(
    tokens: Float[Array, 'B N D'], grid: tuple[int, int], side: int
) -> Float[Array, 'M {side}**2 D']:
    """Cuts maps of patches into windows, M in all, those of an image one after the other.

    Zeros pad the last row and column of windows. Attention sees them as tokens, as in ViTDet.
    """
    rows, columns = grid
    maps = tokens.reshape(tokens.shape[0], rows, columns, -1)
    maps = jnp.pad(maps, ((0, 0), (0, -rows % side), (0, -columns % side), (0, 0)))
    down, right = (size // side for size in maps.shape[1:3])
    cells = maps.reshape(tokens.shape[0], down, side, right, side, -1).swapaxes(2, 3)
    return cells.reshape(-1, side**2, tokens.shape[-1])


def from_windows(
    windows: Float[Array, 'M S D'], grid: tuple[int, int], side: int
) -> Float[Array, 'B {grid[0]}*{grid[1]} D']:
    """Puts windows together to maps of patches, without padding: the inverse of `to_windows`."""
    rows, columns = grid
    down, right = -(-rows // side), -(-columns // side)
    cells = windows.reshape(-1, down, right, side, side, windows.shape[-1]).swapaxes(2, 3)
    maps = cells.reshape(cells.shape[0], down * side, right * side, -1)[:, :rows, :columns]
    return maps.reshape(maps.shape[0], rows * columns, -1)
