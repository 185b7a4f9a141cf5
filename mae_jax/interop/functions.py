"""The functions of a trained model that are exported: images as in the files -> named outputs."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mae_jax.config.model import image_size, statistics
from mae_jax.errors import UserError
from mae_jax.interop.load import load, load_encoder
from mae_jax.interop.modules import kind_of
from mae_jax.interop.read import read_model
from mae_jax.interop.trained import flat
from mae_jax.models.classifier import Classifier
from mae_jax.models.mae import MAE
from mae_jax.models.patches import grid_size, unpatchify
from mae_jax.models.vit import OUTPUTS
from mae_jax.tasks.preprocess import normalize

WHATS = ('encoder', 'classifier', 'reconstruction')
DEFAULTS = {'mae': 'encoder', 'classifier': 'classifier', 'encoder': 'encoder'}
"""Kind of a model -> what is exported of it unless it is named."""
INPUTS = ('uint8', 'float32')


class Value(NamedTuple):
    """An input or output: an array whose first axis is the batch."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    """Of one example."""
    description: str


class Exportable(NamedTuple):
    """A pure function, with the parameters in it as constants."""

    what: str
    """One of `WHATS`."""
    function: Callable[..., dict[str, jax.Array]]
    """Of arrays in the order of `inputs`; returns `outputs` by name."""
    inputs: Sequence[Value]
    outputs: Sequence[Value]
    config: ConfigDict
    """Of the model."""
    step: int | None
    num_bytes: int
    """Size of the parameters."""
    class_names: tuple[str, ...] = ()
    """In the order of the logits of a classifier; () if they are unknown."""


def make_exportable(
    source: str | os.PathLike, what: str | None = None, input_dtype: str | None = None
) -> Exportable:
    """Makes the function of a trained model that is exported, in float32.

    It normalises the images itself.

    Args:
      source: as for `mae_jax.load`.
      what: one of `WHATS`; None is 'classifier' for a classifier and 'encoder' for others.
      input_dtype: of the images, one of `INPUTS`; None is uint8 if `dataset.scale` is 255, the
        largest value of 8 bits, and float32 otherwise.

    Raises:
      UserError: there is no such model, or it has no decoder or head where `what` needs one.
    """
    trained = read_model(source)
    config, kind = trained.config, kind_of(flat(trained))
    what = what or DEFAULTS[kind.name]
    input_dtype = input_dtype or ('uint8' if config.dataset.scale == 255 else 'float32')
    if what not in WHATS:
        raise UserError(f'--what={what} is unknown: use {" | ".join(WHATS)}.')
    if input_dtype not in INPUTS:
        raise UserError(f'--input={input_dtype} is unknown: use {" | ".join(INPUTS)}.')
    make = {'encoder': _encoder, 'classifier': _classifier, 'reconstruction': _reconstruction}
    function, params, inputs, outputs = make[what](source, config)
    shape = (*image_size(config), config.dataset.channels)
    data = config.dataset
    images = Value(
        'images',
        input_dtype,
        shape,
        f'[batch, height, width, channels], {_range(input_dtype, data.scale)} as in the files, '
        'resized and cropped to this size; not normalised: the function does that',
    )
    sizes = [np.asarray(x).nbytes for x in jax.tree.leaves(params)]
    inputs = (images, *inputs)
    names = trained.class_names if what == 'classifier' else ()
    return Exportable(what, function, inputs, outputs, config, trained.step, sum(sizes), names)


def _range(dtype: str, scale: float) -> str:
    return '0 to 255' if dtype == 'uint8' else f'numbers (dataset.scale is {scale:g})'


def _encoder(source: str | os.PathLike, config: ConfigDict) -> tuple:
    encoder, params = load_encoder(source)
    grid, width = grid_size(image_size(config), encoder.patch_size), encoder.width
    has_cls = encoder.options.cls_token
    names = ('cls', 'mean', 'tokens') if has_cls else ('mean', 'tokens')

    def encode(images: jax.Array) -> dict[str, jax.Array]:
        tokens = encoder.apply({'params': params}, normalize(images, **statistics(config)))
        return {name: OUTPUTS[name](tokens, grid) for name in names}

    norm = 'after the final norm' if encoder.has_norm else 'of an encoder without final norm'
    tokens, first = (has_cls + grid[0] * grid[1], width), 'the cls token, then ' * has_cls
    outputs = (
        Value('cls', 'float32', (width,), f'the cls token, {norm}'),
        Value('mean', 'float32', (width,), 'the mean of the patch tokens'),
        Value('tokens', 'float32', tokens, f'{first}the patches, row by row'),
    )
    return encode, params, (), tuple(value for value in outputs if value.name in names)


def _classifier(source: str | os.PathLike, config: ConfigDict) -> tuple:
    model, params = load(source)
    if not isinstance(model, Classifier):
        raise UserError(
            f'{source} is a pretrained model and has no classifier: fine-tune it first, or export '
            'with --what=encoder or --what=reconstruction.'
        )

    def classify(images: jax.Array) -> dict[str, jax.Array]:
        return {'logits': model.apply({'params': params}, normalize(images, **statistics(config)))}

    shape = (model.num_classes,)
    outputs = (Value('logits', 'float32', shape, 'softmax makes them probabilities'),)
    return classify, params, (), outputs


def _reconstruction(source: str | os.PathLike, config: ConfigDict) -> tuple:
    model, params = load(source)
    if not isinstance(model, MAE):
        raise UserError(
            f'{source} is a classifier and has no decoder: export the pretraining run it came from.'
        )
    size, data = image_size(config), config.dataset
    rows, columns = grid_size(size, model.patch_size)
    kept = model.masking.num_kept(rows * columns)
    scale, mean, std = (np.asarray(x, np.float32) for x in (data.scale, data.mean, data.std))

    def reconstruct(images: jax.Array, noise: jax.Array) -> dict[str, jax.Array]:
        inputs = normalize(images, **statistics(config))
        output = model.apply({'params': params}, inputs, noise=noise)
        pixels = model.apply({'params': params}, output.prediction, inputs, method='pixels')
        predicted = (unpatchify(pixels, model.patch_size, size) * std + mean) * scale
        hidden = jnp.repeat(output.mask[..., None], pixels.shape[-1], axis=-1)
        hidden = unpatchify(hidden, model.patch_size, size)
        visible = images.astype(jnp.float32)
        return {'reconstruction': jnp.where(hidden, predicted, visible), 'mask': output.mask}

    rule = f'the {kept} patches of the smallest stay visible'
    if model.masking.strategy == 'random':
        noise = f'uniform in [0, 1), one number a patch: {rule}'
    else:
        noise = f'one number a patch, as mask.strategy={model.masking.strategy!r} draws it: {rule}'
    inputs = (Value('noise', 'float32', (rows * columns,), noise),)
    outputs = (
        Value(
            'reconstruction',
            'float32',
            (*size, data.channels),
            'in the range of the images: the prediction where a patch is hidden, else the image',
        ),
        Value('mask', 'bool', (rows * columns,), 'True where a patch is hidden, row by row'),
    )
    _check_has_pixels(reconstruct, size, data.channels, rows * columns)
    return reconstruct, params, inputs, outputs


def _check_has_pixels(
    reconstruct: Callable[..., Any], size: tuple[int, int], channels: int, patches: int
) -> None:
    """Raises the UserError of a target that has no pixels, such as tokens."""
    images = jax.ShapeDtypeStruct((1, *size, channels), np.float32)
    jax.eval_shape(reconstruct, images, jax.ShapeDtypeStruct((1, patches), np.float32))
