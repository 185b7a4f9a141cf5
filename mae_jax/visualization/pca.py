"""Principal components of patch features, as colours."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64

from mae_jax.errors import UserError
from mae_jax.models.vit import Encoder
from mae_jax.visualization.drawing import Columns, enlarge
from mae_jax.visualization.in_batches import in_batches

PERCENTILES = (1, 99)
"""Percentiles of a principal component over all patches that are drawn darkest and brightest."""


def principal_components(
    features: Float[np.ndarray, 'B rows columns D'], count: int = 3
) -> Float64[np.ndarray, 'B rows columns {count}']:
    """Computes the principal components of the patches of all images together.

    Args:
      features: of the patches.
      count: number of components, those of largest variance first.

    Raises:
      UserError: there are fewer patches than components.
    """
    from sklearn.decomposition import PCA  # takes a second to import

    vectors = np.asarray(features, np.float64).reshape(-1, features.shape[-1])
    if len(vectors) < count:
        raise UserError(
            f'{count} principal components need {count} patches or more, and there are '
            f'{len(vectors)}: give more images.'
        )
    components = PCA(count, svd_solver='full').fit_transform(vectors)
    return components.reshape(*features.shape[:-1], count)


def pca_columns(
    encoder: Encoder, params: Any, images: Float[np.ndarray, 'B H W C'], block: int = -1
) -> Columns:
    """Draws the first three principal components of patch features as red, green and blue.

    Patches of one colour have similar features, within an image and across images. The features of
    an MAE often vary most with the position of a patch: the second column shows the components
    after the features of a blank image, of the mean colour, are subtracted.
    """

    @jax.jit
    def run(params, images):
        (features,) = encoder.apply(
            {'params': params}, images, output='map', blocks=(block,), method='features'
        )
        return features.astype(jnp.float32)

    def draw(features):
        components = principal_components(features)
        low, high = np.percentile(components, PERCENTILES, axis=(0, 1, 2))
        shares = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
        return enlarge(np.rint(255 * shares).astype(np.uint8), encoder.patch_size)

    features = in_batches(run, params, images)
    blank = np.asarray(run(params, np.zeros_like(images[:1])))
    return {
        'principal components': draw(features),
        'less a blank image': draw(features - blank),
    }
