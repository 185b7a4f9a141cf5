"""Running a model over many images within a bounded amount of memory."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

BATCH = 16
"""Images that are run through a model at once."""


def in_batches(run: Callable, params: Any, *arrays: np.ndarray) -> Any:
    """Computes `run(params, *arrays)` on `BATCH` rows at a time.

    Returns:
      The results, a tree of arrays, concatenated along the first axis as NumPy arrays.
    """
    starts = range(0, len(arrays[0]), BATCH)
    results = [run(params, *(array[i : i + BATCH] for array in arrays)) for i in starts]
    return jax.tree.map(lambda *rows: np.concatenate(rows), *results)
