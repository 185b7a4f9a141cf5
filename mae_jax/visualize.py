"""What a trained model sees in images: reconstructions, attention, principal components.

Images are float32 [B,H,W,C], normalised. What is to be drawn is title -> uint8 [B,H,W,3], a column
of `mae_jax.pictures.grid` each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.data.sources import FolderSource
from mae_jax.data.transforms import eval_transform
from mae_jax.errors import UserError
from mae_jax.keys import key_for
from mae_jax.models.mae import MAE
from mae_jax.models.vit import Encoder
from mae_jax.pictures import enlarge, heat
from mae_jax.pretext.masking import draw_noise
from mae_jax.reconstruct import reconstruction_columns

BATCH = 16
"""Images that go through a model at once."""
PERCENTILES = (1, 99)
"""Of a principal component over all patches: shown as darkest and brightest."""
Columns = dict[str, np.ndarray]


def read_images(paths: Sequence[str], **options: Any) -> np.ndarray:
    """[B,H,W,C], of the files' dtype: as evaluation sees them.

    Args:
      paths: of image files.
      **options: of `eval_transform`: image_size, channels, apply_exif, crop_share.

    Raises:
      UserError: there are none, or one cannot be read as an image; the message names it.
    """
    if not paths:
        raise UserError('there is no image to look at: name one or more image files.')
    source = FolderSource('', list(paths), None, [])
    return np.stack([eval_transform(source[i], **options) for i in range(len(source))])


def mask_noise(seed: int, images: int, num_patches: int, strategy: str = 'random') -> np.ndarray:
    """Float32 [B,N] for `MAE`: a draw for each place, however many images there are.

    The same noise at a larger mask ratio hides the same patches, and more.
    """
    keys = [key_for(seed, 'visualize', place) for place in range(images)]
    return np.concatenate([draw_noise(key, 1, num_patches, strategy) for key in keys])


def predict(
    model: MAE, params: Any, images: np.ndarray, noise: np.ndarray, mask_ratio: float
) -> tuple[np.ndarray, np.ndarray]:
    """What the model makes of images of which `mask_ratio` is hidden.

    Returns:
      prediction float32 [B,N,P*P*C], in the space of the target, and mask bool [B,N].

    Raises:
      UserError: the ratio hides nothing, or everything.
    """
    model = model.clone(mask_ratio=mask_ratio)

    @jax.jit
    def run(params, images, noise):
        output = model.apply({'params': params}, images, noise=noise)
        return output.prediction, output.mask

    return _in_batches(run, params, images, noise)


def sweep_columns(
    model: MAE,
    params: Any,
    images: np.ndarray,
    noise: np.ndarray,
    ratios: Sequence[float],
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> Columns:
    """Original, then for each mask ratio what was left of it, and what the model made of that.

    A single ratio has the four columns of `reconstruction_columns`.
    """
    columns = {}
    for ratio in ratios:
        found = reconstruction_columns(
            images,
            *predict(model, params, images, noise, ratio),
            patch_size=model.patch_size,
            normalized_target=model.target == 'normalized_pixel',
            mean=mean,
            std=std,
        )
        if len(ratios) == 1:
            return found
        columns['original'] = found['original']
        for title in ('masked', 'reconstruction + visible'):
            columns[f'{title}, {100 * ratio:g} %'] = found[title]
    return columns


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
    encoder = encoder.clone(scan=False, remat='none')  # either would keep the weights to itself
    rows = images.shape[1] // encoder.patch_size

    @jax.jit
    def run(params, images):
        _, sown = encoder.apply({'params': params}, images, mutable='intermediates')
        (weights,) = sown['intermediates']['blocks'][name]['attention']['weights']
        return weights[:, :, 0, 1:].reshape(len(images), encoder.heads, rows, -1)

    return _in_batches(run, params, images)


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

    features = _in_batches(run, params, images)
    blank = np.asarray(run(params, np.zeros_like(images[:1])))
    return {
        'principal components': drawn(features),
        'less a blank image': drawn(features - blank),
    }


def _in_batches(run: Callable, params: Any, *arrays: np.ndarray) -> Any:
    """`run(params, *arrays)`, `BATCH` rows at a time so that memory stays bounded; numpy."""
    starts = range(0, len(arrays[0]), BATCH)
    parts = [run(params, *(array[i : i + BATCH] for array in arrays)) for i in starts]
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)
