"""What a trained model computes from image files, as one picture: `mae-jax visualize`."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from ml_collections import ConfigDict
from PIL import Image

from mae_jax.config.model import statistics
from mae_jax.errors import UserError
from mae_jax.files.paths import absolute
from mae_jax.files.tensors import replacing, writing
from mae_jax.inference.detect import detected_columns
from mae_jax.inference.images import read_images, reading
from mae_jax.inference.painted import hidden_patches
from mae_jax.inference.reconstruct import predict_hidden, reconstruct
from mae_jax.inference.segment import segmented
from mae_jax.interop.load import load, load_encoder
from mae_jax.interop.read import read_config
from mae_jax.models.mae import MAE
from mae_jax.pretext.masking import STRATEGIES
from mae_jax.tasks.preprocess import normalize
from mae_jax.visualization.attention import attention_columns
from mae_jax.visualization.drawing import Columns, color_scale, grid, to_pixels
from mae_jax.visualization.pca import pca_columns
from mae_jax.visualization.reconstruction import (
    ERROR_CAPTION,
    error_columns,
    reconstruction_columns,
    sweep_columns,
)

SUFFIXES = ('.png', '.jpg', '.jpeg')
JPEG_SIDE = 65_500
"""Largest side of a JPEG in pixels."""
FEATURES = {'attention': attention_columns, 'pca': pca_columns}
"""What can be shown of an encoder alone: (encoder, params, images, block) -> columns."""
WHOLE = {'segmentation': segmented, 'detection': detected_columns}
"""What can be shown of whole images: (checkpoint, image files) -> columns."""


class Shown(NamedTuple):
    """What a picture is drawn from."""

    columns: Columns
    caption: str = ''
    top: float | None = None
    """The error that is drawn lightest; None where no column shows errors."""


def visualize(
    checkpoint: str | os.PathLike,
    images: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    show: str = 'reconstruction',
    mask_ratios: Sequence[float] = (),
    strategy: str | None = None,
    seed: int = 0,
    raw: bool = False,
    painted: Sequence[str | os.PathLike] = (),
    masks: int | None = None,
    block: int = -1,
    abreast: int = 1,
    overwrite: bool = False,
) -> None:
    """Writes a picture of images and what a model computes from them.

    Args:
      checkpoint: a work directory, one of its checkpoints, or a file that `mae-jax convert` wrote.
      images: image files; they are resized and cropped as for evaluation.
      out: the file to write, PNG or JPEG; PNG keeps every pixel.
      show: 'reconstruction', 'attention' of the cls token, 'pca' of the patch features; or, of
        images that are not cropped, one of `WHOLE`: 'segmentation', the class of every pixel, and
        'detection', boxes and masks of objects.
      mask_ratios: shares to hide, with random masking each including what a smaller one hides;
        none: the ratio of the model's config.
      strategy: of masking: 'random', 'block', 'grid' or 'module:function'; None is that of the
        config.
      seed: of the masks.
      raw: whether to add the prediction for every patch, hidden or not.
      painted: image files that are painted where the images are to be hidden, one for each or one
        for all; see `painted.hidden_patches`. No other mask is drawn then.
      masks: number of complementary masks: every patch is predicted once, from the visible ones of
        the mask that hides it, and the picture has the error of every pixel. See `reconstruct`.
      block: the block whose attention or features are shown: 0 the first, -1 the last.
      abreast: how many images stand in a row of the picture.
      overwrite: whether `out` may exist.

    Raises:
      UserError: an argument does not work; the message names it, and nothing is written.
    """
    check_out(out, overwrite)
    if absolute(out) in [absolute(image) for image in (*images, *painted)]:
        raise UserError(f'--out={out} is one of the images: choose another name.')
    if not 0 <= seed < 2**32:
        raise UserError(f'--seed={seed} must be from 0 to {2**32 - 1}.')
    if abreast < 1:
        raise UserError(f'--abreast={abreast} must be at least 1.')
    if show in WHOLE:
        shown = Shown(WHOLE[show](checkpoint, images))
    elif show in FEATURES:
        shown = _features(checkpoint, images, show, block)
    elif show == 'reconstruction':
        masking = dict(mask_ratios=mask_ratios, strategy=strategy, seed=seed, raw=raw)
        shown = _reconstructions(checkpoint, images, painted=painted, masks=masks, **masking)
    else:
        shows = ' | '.join(('reconstruction', *FEATURES, *WHOLE))
        raise UserError(f'show={show!r} is unknown: choose {shows}.')
    _write(shown, out, abreast)


def _write(shown: Shown, out: str | os.PathLike, abreast: int) -> None:
    """Draws and writes the picture; raises a UserError where it is too large for a JPEG."""
    picture = grid(shown.columns, shown.caption, abreast)
    if shown.top is not None:
        picture = np.concatenate([color_scale('error', shown.top, picture.shape[1]), picture])
    if max(picture.shape) > JPEG_SIDE and absolute(out).suffix.lower() != '.png':
        raise UserError(
            f'A JPEG has at most {JPEG_SIDE:,} pixels a side, and this picture has '
            f'{max(picture.shape):,}: end --out in .png, or look at fewer images.'
        )
    with replacing(out) as fresh, writing(out):
        Image.fromarray(picture).save(fresh, quality=95)


def _read(
    checkpoint: str | os.PathLike, images: Sequence[str | os.PathLike]
) -> tuple[Float32[np.ndarray, 'B H W C'], ConfigDict]:
    """Returns images as a model takes them, and its config."""
    config = read_config(checkpoint)
    pixels = read_images(images, **reading(config))
    return np.asarray(normalize(pixels, **statistics(config))), config


def _features(
    checkpoint: str | os.PathLike, images: Sequence[str | os.PathLike], show: str, block: int
) -> Shown:
    """Draws images, and what `FEATURES[show]` has of an encoder."""
    inputs, config = _read(checkpoint, images)
    encoder, params = load_encoder(checkpoint)
    columns = {'original': to_pixels(inputs, **_undo(config))}
    return Shown(columns | FEATURES[show](encoder, params, inputs, block))


def _reconstructions(
    checkpoint: str | os.PathLike,
    images: Sequence[str | os.PathLike],
    *,
    mask_ratios: Sequence[float],
    strategy: str | None,
    seed: int,
    raw: bool,
    painted: Sequence[str | os.PathLike],
    masks: int | None,
) -> Shown:
    """Draws what an autoencoder predicts; the arguments are those of `visualize`."""
    inputs, config = _read(checkpoint, images)
    model, params = _load_mae(checkpoint, config)
    undo, caption = _undo(config), model.target.caption
    if masks is not None:
        result = reconstruct(model, params, inputs, masks=masks, seed=seed)
        columns, top = error_columns(inputs, result.reconstruction, result.error, **undo)
        return Shown(columns, f'{ERROR_CAPTION} {caption}'.strip(), top)
    if painted:
        hidden = hidden_patches(painted, images, model.patch_size, **reading(config))
        predicted = predict_hidden(model, params, inputs, hidden)
        options = dict(patch_size=model.patch_size, raw=raw, **undo)
        return Shown(reconstruction_columns(inputs, predicted, hidden, **options), caption)
    if strategy:
        STRATEGIES.get(strategy)
        model = model.clone(masking=dataclasses.replace(model.masking, strategy=strategy))
    ratios = mask_ratios or (model.masking.ratio,)
    columns = sweep_columns(model, params, inputs, ratios, seed=seed, raw=raw, **undo)
    return Shown(columns, caption)


def _undo(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of `to_pixels` of a model's config."""
    return dict(mean=config.dataset.mean, std=config.dataset.std)


def check_out(out: str | os.PathLike, overwrite: bool) -> None:
    """Raises a UserError, before anything is computed, for a file that cannot be written."""
    path = absolute(out)
    if path.is_dir():
        raise UserError(f'--out={out} is a directory: choose another name.')
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f'--out={out} must end in {", ".join(SUFFIXES)}.')
    if path.exists() and not overwrite:
        raise UserError(f'--out={out} exists and is kept: choose another name, or add --overwrite.')


def _load_mae(checkpoint: str | os.PathLike, config: ConfigDict) -> tuple[MAE, Any]:
    """Loads a pretrained model; raises a UserError for a classifier or segmenter."""
    if config.get('task') == 'segment':
        raise UserError(
            f'{checkpoint} segments images and has no decoder: add --show=segmentation, or name '
            'the pretraining run it came from.'
        )
    model, params = load(checkpoint)
    if not isinstance(model, MAE):
        raise UserError(
            f'{checkpoint} is a classifier and has no decoder: name the pretraining run it came '
            'from, or look at its encoder with --show=attention or --show=pca.'
        )
    return model, params
