"""Small images without two equal patches, and their normalised values."""

import numpy as np

PATCH, GRID = 4, (3, 2)
SHAPE = (12, 8, 3)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def photograph(seed: int = 0) -> np.ndarray:
    """Draws uint8 pixels of `SHAPE`."""
    return np.random.default_rng(seed).integers(0, 256, SHAPE, np.uint8)


def normalised(pixels: np.ndarray) -> np.ndarray:
    """Normalises pixels by `MEAN` and `STD`."""
    return ((pixels / 255.0 - MEAN) / STD).astype(np.float32)
