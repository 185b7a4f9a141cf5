"""Takes a picture apart again, for tests."""

import numpy as np

from mae_jax.visualization.drawing import MARGIN


def cells_of(shown: np.ndarray, rows: int, columns: int, height: int, width: int) -> np.ndarray:
    """uint8 [columns, rows, height, width, 3]: the images of a picture, at their own size.

    Margins must be white, and images enlarged by nearest neighbour, all by one factor.
    """
    cell_width = shown.shape[1] // columns
    factor = (cell_width - 2 * MARGIN) // width
    cell_height = height * factor + 2 * MARGIN
    assert shown.shape[1] == columns * (width * factor + 2 * MARGIN)
    cells = shown[-rows * cell_height :].reshape(rows, cell_height, columns, cell_width, 3)
    cells = cells.transpose(2, 0, 1, 3, 4)
    inside = cells[:, :, MARGIN:-MARGIN, MARGIN:-MARGIN]
    assert cells.sum(dtype=int) - inside.sum(dtype=int) == 255 * (cells.size - inside.size)
    small = inside[:, :, ::factor, ::factor]
    enlarged = small.repeat(factor, axis=2).repeat(factor, axis=3)
    np.testing.assert_array_equal(inside, enlarged)
    return small


def titles_of(shown: np.ndarray, rows: int, columns: int, height: int, width: int) -> np.ndarray:
    """uint8 [columns, height of the titles, width of a column, 3]: what stands above them."""
    cell_width = shown.shape[1] // columns
    factor = (cell_width - 2 * MARGIN) // width
    strip = shown[: -rows * (height * factor + 2 * MARGIN)]
    return strip.reshape(len(strip), columns, cell_width, 3).swapaxes(0, 1)


def cut(image: np.ndarray, patch: int) -> np.ndarray:
    """[H,W,C] -> [N, P*P*C], patch by patch from the top left, along the rows; by hand."""
    height, width, _ = image.shape
    return np.stack(
        [
            image[top : top + patch, left : left + patch].ravel()
            for top in range(0, height, patch)
            for left in range(0, width, patch)
        ]
    )


def hidden_pixels(mask: np.ndarray, height: int, width: int, patch: int) -> np.ndarray:
    """bool [B,N] -> bool [B,H,W]."""
    grid = mask.reshape(len(mask), height // patch, width // patch)
    return np.kron(grid, np.ones((1, patch, patch), bool)).astype(bool)
