"""Fitting the arrays of the target `PCA` to a sample of patches."""

from collections.abc import Iterable

import numpy as np
from jaxtyping import ArrayLike, Float, Float32


def fit_pca(
    batches: Iterable[Float[ArrayLike, '_ V']], components: int
) -> tuple[dict[str, Float32[np.ndarray, '...']], float]:
    """Computes the mean and the largest eigenvectors of the covariance of a sample of patches.

    Args:
      batches: patches; summed in float64.
      components: number of eigenvectors.

    Returns:
      {'mean': [V], 'basis': [V, components]}, the eigenvector of largest variance first; the
      largest entry of each is positive, which makes the sign independent of the solver. And the
      share of the variance that they explain.
    """
    count, total, products = 0, 0.0, 0.0
    for patches in batches:
        patches = np.asarray(patches, np.float64)
        count += len(patches)
        total = total + patches.sum(axis=0)
        products = products + patches.T @ patches
    mean = total / count
    variances, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    basis = vectors[:, ::-1][:, :components]
    largest = np.abs(basis).argmax(axis=0)
    basis = basis * np.sign(basis[largest, np.arange(components)])
    explained = variances[::-1][:components].sum() / max(variances.sum(), np.finfo(float).tiny)
    return {'mean': mean.astype(np.float32), 'basis': basis.astype(np.float32)}, float(explained)
