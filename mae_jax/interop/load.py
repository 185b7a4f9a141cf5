"""Loads a trained model or its encoder into Python: `load`, `load_encoder`, `load_normalize`."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from ml_collections import ConfigDict

from mae_jax.config import model as model_config
from mae_jax.errors import UserError
from mae_jax.interop.hyperparameters import override
from mae_jax.interop.modules import (
    Kind,
    check_sizes,
    encoder_of,
    join_first,
    kind_of,
    make_module,
    shape_differences,
    shapes_of,
)
from mae_jax.interop.read import read_config, read_model
from mae_jax.interop.resize import resize_encoder
from mae_jax.interop.trained import Trained, flat
from mae_jax.models.classifier import BatchNorm, Classifier
from mae_jax.models.mae import MAE
from mae_jax.models.patches import grid_size
from mae_jax.models.vit import Encoder
from mae_jax.tasks.preprocess import normalize

NEW_CHANNELS = ('average', 'repeat')
"""Ways to adapt a patch kernel to another number of channels."""


def load(path: str | os.PathLike, *, dtype: str = 'float32') -> tuple[MAE | Classifier, Any]:
    """Loads a trained model, to be used as `module.apply({'params': params}, images)`.

    Args:
      path: a work directory (its newest checkpoint), one of its checkpoints
        (`<workdir>/checkpoints/<step>`), a file that `mae-jax convert` wrote, a file or directory
        of another library (`.pth`, a directory of Hugging Face, ...: `mae-jax convert --help`), or
        'hf://owner/name[@revision]' on the Hugging Face Hub.
      dtype: dtype of activations, 'float32' or 'bfloat16'.

    Returns:
      (module, parameters as float32 arrays): an `MAE`, or a `Classifier` if one was trained.
      The running statistics of a linear probe are folded into its head.

    Raises:
      UserError: there is no such model, it is damaged, or it is an encoder without decoder or head.
    """
    module, trained = read_module(path, _dtype(dtype))
    if isinstance(module, Encoder):
        raise UserError(
            f'{path} has no decoder: it holds only an encoder, which predicts no patches. Use '
            'mae_jax.load_encoder for its features; to reconstruct, take a checkpoint with '
            'decoder (of the official ones, mae_pretrain_*_full or mae_visualize_*).'
        )
    params = trained.params
    if trained.model_state:
        module = module.clone(batch_norm=False)
        params = _folded(params, trained.model_state['batch_stats']['feature_norm'])
    return module, jax.tree.map(jnp.asarray, params)


def load_encoder(
    path: str | os.PathLike,
    *,
    image_size: tuple[int, int] | int | None = None,
    channels: int | None = None,
    new_channels: str | None = None,
    dtype: str = 'float32',
) -> tuple[Encoder, Any]:
    """Loads a trained encoder, for a model of one's own; see `Encoder.features` for its outputs.

    Args:
      path: as for `load`.
      image_size: (height, width) in pixels, or the side of a square; None keeps that of training.
        For another size the positions are resized as `resize_encoder` says (the original's
        bicubic).
      channels: number of channels of the images; None keeps that of training.
      new_channels: how to make the patch kernel for another number of channels: 'average' gives
        each channel the mean of the old ones, 'repeat' repeats the old ones in order. Both are
        scaled such that an image with equal channels gives the same tokens as before (with
        'repeat', if one number of channels divides the other).
      dtype: dtype of activations, 'float32' or 'bfloat16'.

    Returns:
      (module, parameters as float32 arrays). An encoder that was fine-tuned with mean pooling has
      no final norm.

    Raises:
      UserError: there is no such model, it is damaged, or it cannot be adapted as requested.
    """
    if new_channels not in (None, *NEW_CHANNELS):
        raise UserError(f'new_channels={new_channels!r}: choose {" or ".join(NEW_CHANNELS)}.')
    if channels is not None and channels < 1:
        raise UserError(f'channels={channels} must be at least 1.')
    _, trained = read_module(path, _dtype(dtype))
    config, params = trained.config, encoder_of(trained.params)
    module = make_module(config, Kind('encoder', has_norm='norm' in params))
    if image_size is not None:
        sides = np.ravel(image_size).tolist()
        size = model_config.image_size(ConfigDict({'image_size': sides}))
        old = grid_size(model_config.image_size(config), module.patch_size)
        new = grid_size(size, module.patch_size)
        names = traverse_util.flatten_dict(params, sep='/')
        names |= resize_encoder(names, old, new, module.options)
        params = traverse_util.unflatten_dict(names, sep='/')
    if channels not in (None, config.dataset.channels):
        kernel = adapt_channels(
            params['patch_embed']['kernel'], config.dataset.channels, channels, new_channels
        )
        params['patch_embed'] = params['patch_embed'] | {'kernel': kernel}
    return module, jax.tree.map(jnp.asarray, params)


def load_normalize(path: str | os.PathLike) -> Callable[[jax.Array], jax.Array]:
    """Returns the function that normalised images in training.

    It maps images [B, H, W, C] as loaded, for instance uint8, to float32. C is the number of
    channels in training; for another, compute `(images / scale - mean) / std` yourself.

    Args:
      path: as for `load`.

    Raises:
      UserError: there is no such model, or it is damaged.
    """
    return partial(normalize, **model_config.statistics(read_config(path)))


def _dtype(dtype: Any) -> str:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in ('float32', 'bfloat16'):
        raise UserError(f"dtype={name!r}: choose 'float32' or 'bfloat16'.")
    return name


def adapt_channels(kernel: np.ndarray, old: int, new: int, how: str | None) -> np.ndarray:
    """Converts a patch kernel [P*P*old, D] to [P*P*new, D]; `how` as for `load_encoder`.

    Raises:
      UserError: `how` is not one of `NEW_CHANNELS`.
    """
    if how not in NEW_CHANNELS:
        raise UserError(
            f'{new} channels, where the encoder was trained on {old}: choose '
            "new_channels='average' or new_channels='repeat'."
        )
    cells = np.asarray(kernel).reshape(-1, old, kernel.shape[-1])
    cells = _other_channels(cells, new, how) * (old / new)
    return cells.reshape(-1, kernel.shape[-1]).astype(np.float32)


def adapt_prediction(array: np.ndarray, old: int, new: int, how: str) -> np.ndarray:
    """Converts a pixel head's kernel or bias, [..., P*P*old], to `new` channels.

    A new channel is predicted as the mean of the old ones, or as one of them.
    """
    shape = array.shape[:-1]
    cells = np.asarray(array).reshape(-1, old, 1)  # each row of patches after the other
    return _other_channels(cells, new, how).reshape(*shape, -1).astype(np.float32)


def _other_channels(cells: np.ndarray, new: int, how: str) -> np.ndarray:
    """Converts [N, old, D] to [N, new, D]: the mean of the old ones, or these in order."""
    if how == 'average':
        return np.repeat(cells.mean(axis=1, keepdims=True), new, axis=1)
    return cells[:, np.arange(new) % cells.shape[1]]


def read_module(
    path: str | os.PathLike, dtype: str | None = None, given: dict[str, Any] | None = None
) -> tuple[nn.Module, Trained]:
    """Reads a trained model, makes its module, and checks that both fit.

    Args:
      path: as for `load`.
      dtype: dtype of activations; None keeps that of the config.
      given: hyperparameters that override those of the config, see `hyperparameters.py`.

    Returns:
      (module, model); the module is an `Encoder` if the model has neither decoder nor head, or was
      trained by a task that is not part of this package, of which only the encoder is read.

    Raises:
      UserError: there is no such model, or it is damaged.
    """
    trained = read_model(path)
    if trained.config.get('task') not in (None, 'pretrain', 'classify'):  # a task of one's own
        trained = trained._replace(params={'encoder': trained.params['encoder']}, model_state={})
    config = override(trained.config, given or {})
    tensors = flat(trained)
    try:
        config.model.dtype = dtype or config.model.dtype
        kind = kind_of(tensors)
        check_sizes(config, tensors)
        expected = shapes_of(config, kind)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    except Exception as error:  # an untrusted config can raise errors of any kind
        raise UserError(f'{path} is damaged: its config is not that of a model.') from error
    actual = {name: tensor.shape for name, tensor in tensors.items()}
    if problems := shape_differences(actual, expected):
        raise UserError(f'{path} does not hold the model of its config: {join_first(problems)}.')
    return make_module(config, kind), trained._replace(config=config)


def _folded(params: Any, statistics: Any) -> Any:
    """Folds batch norm into the head, so that the head alone gives the same outputs."""
    head = params['head']
    scale = 1 / np.sqrt(statistics['var'].astype(np.float64) + BatchNorm.epsilon)
    kernel = scale[:, None] * head['kernel']
    bias = head['bias'] - statistics['mean'] @ kernel
    folded = {'kernel': kernel.astype(np.float32), 'bias': bias.astype(np.float32)}
    return params | {'head': folded}
