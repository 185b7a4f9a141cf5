"""What must be predicted for each patch (paper, section 3, "Reconstruction target", and Table 1d).

Pixels, normalised pixels and PCA coefficients are made of the patches, float32 [B, N, P*P*C];
tokens, int32 [B, N], come from a tokenizer (`tokenizers.py`) that looks at whole images.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from mae_jax.errors import UserError

TARGETS = ('pixel', 'normalized_pixel', 'pca', 'token')
LOSS_ON = ('hidden', 'all')


def check_target(name: str, loss_on: str, components: int, codes: int, patch_dim: int) -> None:
    """Raises a UserError for a target that there is not, or that patches of this size have not."""
    if name not in TARGETS:
        raise UserError(f'target.name={name!r} is unknown: use {" | ".join(TARGETS)}.')
    if loss_on not in LOSS_ON:
        raise UserError(f'target.loss_on={loss_on!r} is unknown: use {" | ".join(LOSS_ON)}.')
    if name == 'normalized_pixel' and patch_dim < 2:
        raise UserError(
            "target.name='normalized_pixel' needs patches of two or more values: use a larger "
            "model.patch_size, or target.name='pixel'."
        )
    if name == 'pca' and not 1 <= components <= patch_dim:
        raise UserError(
            f'target.components={components}: patches of {patch_dim} values have 1 to {patch_dim} '
            'principal components.'
        )
    if name == 'token' and codes < 2:
        raise UserError(f'target.codes={codes}: a codebook has two codes or more.')


def prediction_size(name: str, components: int, codes: int, patch_dim: int) -> int:
    """The numbers that are predicted for a patch of `patch_dim` values."""
    return {'pca': components, 'token': codes}.get(name, patch_dim)


def patch_statistics(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of each patch over its pixels and channels.

    Args:
      patches: float32 [B, N, P*P*C], of two values or more.

    Returns:
      mean and std, both [B, N, 1]. The variance is the unbiased one, and 1e-6 is added to it
      inside the root, as in the original: `target * std + mean` undoes the normalisation.
    """
    mean = jnp.mean(patches, axis=-1, keepdims=True)
    std = jnp.sqrt(jnp.var(patches, axis=-1, keepdims=True, ddof=1) + 1e-6)
    return mean, std


def normalized_pixel(patches: jax.Array) -> jax.Array:
    """The pixels, normalised by the mean and standard deviation of their own patch."""
    mean, std = patch_statistics(patches)
    return (patches - mean) / std


class PCA(nn.Module):
    """Patches [..., P*P*C] <-> their coefficients of largest variance [..., components].

    Its parameters, `mean` [P*P*C] and `basis` [P*P*C, components], are not trained but fitted, by
    `fit_pca`. Until then they are NaN, so that nothing can be learned from a basis that is none.
    """

    components: int

    @nn.compact
    def __call__(self, vectors: jax.Array, patch_dim: int, decode: bool = False) -> jax.Array:
        mean = self.param('mean', nn.initializers.constant(jnp.nan), (patch_dim,))
        shape = (patch_dim, self.components)
        basis = self.param('basis', nn.initializers.constant(jnp.nan), shape)
        # Of full precision, on a TPU too: these are targets, not activations.
        precision = jax.lax.Precision.HIGHEST
        if decode:
            return jnp.dot(vectors, basis.T, precision=precision) + mean
        return jnp.dot(vectors - mean, basis, precision=precision)


def fit_pca(batches: Iterable[np.ndarray], components: int) -> tuple[dict[str, np.ndarray], float]:
    """Mean and largest eigenvectors of the covariance of a sample.

    Args:
      batches: of patches, [n, P*P*C] each; summed in float64.
      components: how many eigenvectors.

    Returns:
      The parameters of `PCA`, {'mean': float32 [P*P*C], 'basis': float32 [P*P*C, components]},
      that of largest variance first; the largest entry of each is positive, so that no solver
      decides the sign. And the share of the variance that they hold.
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


def patch_errors(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """The error of each patch, float32 [B, N], in float32.

    Mean squared error of numbers [B, N, M]; of tokens, int [B, N], the cross-entropy of the logits
    `prediction` [B, N, codes], in nats.
    """
    prediction = prediction.astype(jnp.float32)
    if target.ndim < prediction.ndim:
        return optax.softmax_cross_entropy_with_integer_labels(prediction, target)
    return jnp.square(prediction - target.astype(jnp.float32)).mean(axis=-1)


def mean_error(errors: jax.Array, mask: jax.Array, loss_on: str = 'hidden') -> jax.Array:
    """float32 mean of errors [B, N] over the hidden patches (`mask` True), or over all of them."""
    if loss_on == 'all':
        return jnp.mean(errors)
    return jnp.sum(errors * mask) / jnp.sum(mask, dtype=jnp.float32)
