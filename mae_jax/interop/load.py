"""`mae_jax.load`, `load_encoder` and `load_normalize`: a trained model in one's own code."""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from mae_jax.config.model import statistics
from mae_jax.errors import UserError
from mae_jax.interop.facts import restate
from mae_jax.interop.modules import (
    Kind,
    check_sizes,
    differences,
    encoder_of,
    kind_of,
    make_module,
    shapes_of,
    some,
)
from mae_jax.interop.trained import Trained, flat, read_config, read_trained
from mae_jax.models.classifier import BatchNorm, Classifier
from mae_jax.models.mae import MAE
from mae_jax.models.patches import grid_size
from mae_jax.models.positions import resize_positions
from mae_jax.models.vit import Encoder
from mae_jax.tasks.preprocess import normalize

NEW_CHANNELS = ('average', 'repeat')
"""How a patch kernel is made for another number of channels."""


def load(path: str | os.PathLike, *, dtype: str = 'float32') -> tuple[MAE | Classifier, Any]:
    """A trained model: `module.apply({'params': params}, images)`.

    Args:
      path: a work directory (its newest checkpoint), one of its checkpoints
        (`<workdir>/checkpoints/<step>`), or a file that `mae-jax convert` wrote.
      dtype: of activations, 'float32' or 'bfloat16'.

    Returns:
      (module, parameters as float32 arrays): an `MAE`, or a `Classifier` where one was trained.
      The running statistics of a linear probe are folded into its head.

    Raises:
      UserError: there is no such model, it is damaged, or it is an encoder without decoder or head.
    """
    module, trained = read_module(path, _dtype(dtype))
    if isinstance(module, Encoder):
        raise UserError(
            f'{path} has no decoder: it holds an encoder alone, which predicts no patches. Use '
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
    """A trained encoder, for a model of one's own; see `Encoder.features` for what it gives.

    Args:
      path: as of `load`.
      image_size: (height, width), or the side of a square, if not as it was trained: positions
        are resized (bicubic, as the original does).
      channels: of the images, if not as it was trained.
      new_channels: how their part of the patch kernel is made: 'average' gives each the mean of
        the old ones', 'repeat' takes the old ones' in turn. Both are scaled so that an image of
        equal channels gives what it gave before (with 'repeat', where the numbers divide).
      dtype: of activations, 'float32' or 'bfloat16'.

    Returns:
      (module, parameters as float32 arrays). An encoder that was fine-tuned with mean pooling has
      no final norm.

    Raises:
      UserError: there is no such model, it is damaged, or it does not fit what is asked.
    """
    if new_channels not in (None, *NEW_CHANNELS):
        raise UserError(f'new_channels={new_channels!r}: choose {" or ".join(NEW_CHANNELS)}.')
    if channels is not None and channels < 1:
        raise UserError(f'channels={channels} must be at least 1.')
    _, trained = read_module(path, _dtype(dtype))
    config, params = trained.config, encoder_of(trained.params)
    module = make_module(config, Kind('encoder', has_norm='norm' in params))
    if image_size is not None:
        sides = (image_size,) if np.ndim(image_size) == 0 else tuple(image_size)
        wanted = image_size(ConfigDict({'image_size': sides}))
        old = grid_size(image_size(config), module.patch_size)
        new = grid_size(wanted, module.patch_size)
        params['pos_embed'] = resize_positions(params['pos_embed'], old, new)
    if channels not in (None, config.dataset.channels):
        kernel = adapt_channels(
            params['patch_embed']['kernel'], config.dataset.channels, channels, new_channels
        )
        params['patch_embed'] = params['patch_embed'] | {'kernel': kernel}
    return module, jax.tree.map(jnp.asarray, params)


def load_normalize(path: str | os.PathLike) -> Callable[[jax.Array], jax.Array]:
    """How the images of a model were normalised: [B, H, W, C] as loaded, uint8 say -> float32.

    They have the channels it was trained on; for others, `(images / scale - mean) / std` is yours.

    Args:
      path: as of `load`.
    """
    return partial(normalize, **statistics(read_config(path)))


def _dtype(dtype: Any) -> str:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in ('float32', 'bfloat16'):
        raise UserError(f"dtype={name!r}: choose 'float32' or 'bfloat16'.")
    return name


def adapt_channels(kernel: np.ndarray, old: int, new: int, how: str | None) -> np.ndarray:
    """A patch kernel [P*P*old, D] -> [P*P*new, D]; `how` is as of `load_encoder`.

    Raises:
      UserError: `how` is none of those there are.
    """
    cells = np.asarray(kernel).reshape(-1, old, kernel.shape[-1])
    if how == 'average':
        cells = np.repeat(cells.mean(axis=1, keepdims=True), new, axis=1)
    elif how == 'repeat':
        cells = cells[:, np.arange(new) % old]
    else:
        raise UserError(
            f'{new} channels, where the encoder was trained on {old}: choose '
            "new_channels='average' or new_channels='repeat'."
        )
    return (cells * (old / new)).reshape(-1, kernel.shape[-1]).astype(np.float32)


def read_module(
    path: str | os.PathLike, dtype: str | None = None, given: dict[str, Any] | None = None
) -> tuple[nn.Module, Trained]:
    """A trained model and its module, an `Encoder` where there is no more; one fits the other.

    `given` replaces what its config says: see `facts.py`. `dtype` is of activations.

    Raises:
      UserError: as of `load`.
    """
    trained = read_trained(path)
    config = restate(trained.config, given or {})
    tensors = flat(trained)
    try:
        config.model.dtype = dtype or config.model.dtype
        kind = kind_of(tensors)
        check_sizes(config, tensors)
        wanted = shapes_of(config, kind)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    except Exception as error:  # a config of somebody else's can say anything
        raise UserError(f'{path} is damaged: its config is not that of a model.') from error
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if problems := differences(found, wanted):
        raise UserError(f'{path} holds another model than its config says: {some(problems)}.')
    return make_module(config, kind), trained._replace(config=config)


def _folded(params: Any, statistics: Any) -> Any:
    """The head that makes of features what batch norm and the head made of them."""
    head = params['head']
    scale = 1 / np.sqrt(statistics['var'].astype(np.float64) + BatchNorm.epsilon)
    kernel = scale[:, None] * head['kernel']
    bias = head['bias'] - statistics['mean'] @ kernel
    folded = {'kernel': kernel.astype(np.float32), 'bias': bias.astype(np.float32)}
    return params | {'head': folded}
