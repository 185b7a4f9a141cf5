"""What a trained model makes of images, as one picture: `mae-jax visualize`.

Images are float32 [B,H,W,C], normalised. What is to be drawn is title -> uint8 [B,H,W,3], a column
of `mae_jax.pictures.grid` each.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.errors import UserError
from mae_jax.models.vit import Encoder
from mae_jax.visualization.drawing import enlarge, heat
from mae_jax.visualization.reconstruction import Columns, in_batches

PERCENTILES = (1, 99)
"""Of a principal component over all patches: shown as darkest and brightest."""


def cls_attention(encoder: Encoder, params: Any, images: np.ndarray, block: int = -1) -> np.ndarray:
    """How much the cls token looks at each patch, in one block.

    Args:
      block: 0 the first, -1 the last.

    Returns:
      float32 [B, heads, H/P, W/P]. What the cls token has left for itself is missing to a sum of 1.

    Raises:
      UserError: there is no such block.
    """
    if not -encoder.depth <= block < encoder.depth:
        raise UserError(
            f'--block={block} is not there: this encoder has blocks 0 to {encoder.depth - 1}.'
        )
    name = f'block_{range(encoder.depth)[block]}'
    encoder = encoder.clone(scan=False, remat='none', attend='plain')  # any other hides weights
    rows = images.shape[1] // encoder.patch_size

    @jax.jit
    def run(params, images):
        _, sown = encoder.apply({'params': params}, images, mutable='intermediates')
        (weights,) = sown['intermediates']['blocks'][name]['attention']['weights']
        return weights[:, :, 0, 1:].reshape(len(images), encoder.heads, rows, -1)

    return in_batches(run, params, images)


def attention_columns(
    encoder: Encoder, params: Any, images: np.ndarray, block: int = -1
) -> Columns:
    """`cls_attention` as heat maps: the mean of all heads, then each head."""
    weights = cls_attention(encoder, params, images, block)
    maps = {'mean of all heads': weights.mean(axis=1)}
    maps |= {f'head {head}': weights[:, head] for head in range(encoder.heads)}
    return {title: heat(values, encoder.patch_size) for title, values in maps.items()}


def principal_components(features: np.ndarray, count: int = 3) -> np.ndarray:
    """Features [B,rows,columns,D] -> float64 [B,rows,columns,count].

    The components are those of the patches of all images together, the one of most variance first.

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
    found = PCA(count, svd_solver='full').fit_transform(vectors)
    return found.reshape(*features.shape[:-1], count)


def pca_columns(encoder: Encoder, params: Any, images: np.ndarray, block: int = -1) -> Columns:
    """The first three principal components of patch features as red, green and blue.

    Patches of one colour look alike to the encoder, in one image as in another. What varies most
    in the features of an MAE is often where a patch lies: the second column has the components of
    what is left when the features of a blank image, of the mean colour, are subtracted.
    """

    @jax.jit
    def run(params, images):
        (found,) = encoder.apply(
            {'params': params}, images, output='map', blocks=(block,), method='features'
        )
        return found.astype(jnp.float32)

    def drawn(features: np.ndarray) -> np.ndarray:
        components = principal_components(features)
        low, high = np.percentile(components, PERCENTILES, axis=(0, 1, 2))
        shares = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
        return enlarge(np.rint(255 * shares).astype(np.uint8), encoder.patch_size)

    features = in_batches(run, params, images)
    blank = np.asarray(run(params, np.zeros_like(images[:1])))
    return {
        'principal components': drawn(features),
        'less a blank image': drawn(features - blank),
    }


FEATURES = {'attention': attention_columns, 'pca': pca_columns}
"""What can be shown of an encoder."""
