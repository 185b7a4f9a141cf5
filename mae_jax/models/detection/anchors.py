"""Anchors: boxes of a few shapes around every cell of a map."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32


def cell_anchors(size: float, ratios: Sequence[float]) -> Float32[np.ndarray, 'S 4']:
    """Computes the S anchors around the origin, of area size^2, one for each height to width.

    Their edges are not rounded, as in detectron2; torchvision's are.
    """
    ratios = np.asarray(ratios, np.float64)
    widths = size / np.sqrt(ratios)
    corners = np.stack([widths, widths * ratios], axis=1) / 2
    return np.concatenate([-corners, corners], axis=1).astype(np.float32)


def grid_anchors(
    grid: tuple[int, int], stride: float, size: float, ratios: Sequence[float]
) -> Float32[np.ndarray, 'A 4']:
    """Computes the anchors of a map of rows and columns, by row, column, then shape.

    Those of the first cell are around the image's corner, (0, 0), as in detectron2 and
    torchvision.

    Args:
      stride: between cells, in pixels.
      size, ratios: as of `cell_anchors`.
    """
    rows, columns = np.indices(grid, dtype=np.float32) * np.float32(stride)
    shifts = np.stack([columns, rows, columns, rows], axis=-1)
    return (shifts[:, :, None] + cell_anchors(size, ratios)).reshape(-1, 4)
