"""Makes the module that parameters belong to, and compares names and shapes with it."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from ml_collections import ConfigDict

from mae_jax.config.model import (
    encoder_options,
    image_size,
    make_architecture,
    make_classifier,
    make_encoder,
    make_mae,
)
from mae_jax.errors import UserError
from mae_jax.models.options import EncoderOptions
from mae_jax.models.patches import grid_size
from mae_jax.models.relative import relative_rows
from mae_jax.registry import is_path

Shapes = dict[str, tuple[int, ...]]


class Kind(NamedTuple):
    """The kind of a model."""

    name: str
    """'mae', 'classifier' or 'encoder'."""
    classes: int | None = None
    """Number of classes of a classifier."""
    has_norm: bool = True
    """Whether an encoder by itself ends in a norm: fine-tuning with mean pooling removes it."""
    predicted: int = 0
    """Number of values that an autoencoder predicts for a patch."""


def kind_of(tensors: Mapping[str, Any]) -> Kind:
    """Returns the kind of a model from the names of its parameters."""
    modules = {name.split('/')[0] for name in tensors}
    if 'decoder' in modules:
        return Kind('mae', predicted=np.size(tensors.get('decoder/head/bias', ())))
    if 'head' in modules:
        return Kind('classifier', tensors['head/bias'].shape[0])
    return Kind('encoder', has_norm='encoder/norm/scale' in tensors)


def encoder_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the encoder's parameters without its mask token, which only pretraining uses."""
    return {name: value for name, value in params['encoder'].items() if name != 'mask_token'}


def make_module(config: ConfigDict, kind: Kind) -> nn.Module:
    """Makes the `MAE`, `Classifier` or `Encoder` of a config, without remat, scan or kernels."""
    config = config.copy_and_resolve_references()
    config.model.update(remat='none', scan=False, attention='plain')
    if kind.name == 'mae':
        return make_mae(config, kind.predicted)
    if kind.name == 'classifier':
        return make_classifier(config, kind.classes)
    return make_encoder(config).clone(has_norm=kind.has_norm)


def check_sizes(config: ConfigDict, tensors: Mapping[str, Any]) -> None:
    """Compares the sizes in a config with the tensors, before anything of that size is allocated.

    Raises:
      UserError: they differ. (An invalid config can also raise other exceptions.)
    """
    sizes, options = make_architecture(config.model), encoder_options(config.model)
    grid = grid_size(image_size(config), sizes['patch_size'])
    claimed = {'encoder': (sizes['width'], sizes['depth'])}
    if any(name.startswith('decoder/') for name in tensors):
        claimed['decoder'] = (config.model.decoder_width, config.model.decoder_depth)
    for part, (width, depth) in claimed.items():
        if part == 'decoder':
            options = EncoderOptions()  # which has none
        blocks = {n.split('/')[2] for n in tensors if n.startswith(f'{part}/blocks/')}
        if len(blocks) != depth:
            raise UserError(f'its {part} has {len(blocks)} blocks, and {depth} by its config.')
        rows = grid[0] * grid[1] + options.cls_token
        expected = {f'{part}/pos_embed': (1, rows, width)} if options.absolute_positions else {}
        for block in range(depth):
            name = f'{part}/blocks/block_{block}/attention'
            expected |= {
                f'{name}/{leaf}': (rows,)
                for leaf, rows in relative_rows(options, block, grid).items()
            }
        for name, shape in expected.items():
            if name not in tensors:
                raise UserError(f'it has no {name}, and is damaged.')
            actual = tensors[name].shape
            if actual[: len(shape)] != shape:
                raise UserError(f'{name} has shape {actual}, and {shape} by its config.')


def shapes_of(config: ConfigDict, kind: Kind) -> Shapes:
    """Returns name -> shape of every tensor of a model, including its running statistics."""
    config, depths = config.copy_and_resolve_references(), {}
    if not encoder_options(config.model).window:  # which not all blocks have
        depths['encoder'] = make_architecture(config.model)['depth']
        config.model.depth = 1  # all blocks have the same shapes: tracing one is enough
    if kind.name == 'mae':
        depths['decoder'] = config.model.decoder_depth
        config.model.decoder_depth = 1
        if is_path(config.mask.strategy):  # not imported, and shapes do not depend on it
            config.mask.strategy = 'random'
    size = (1, *image_size(config), config.dataset.channels)
    images = jax.ShapeDtypeStruct(size, jnp.float32)  # not allocated: an untrusted size
    rngs = {'params': jax.random.key(0), 'mask': jax.random.key(0)}
    variables = dict(jax.eval_shape(make_module(config, kind).init, rngs, images))
    params = variables.pop('params')
    tree = ({'encoder': params} if kind.name == 'encoder' else params) | variables
    shapes = {}
    for name, array in traverse_util.flatten_dict(tree, sep='/').items():
        blocks = depths.get(name.split('/')[0], 1) if 'block_0/' in name else 1
        for i in range(blocks):
            shapes[name.replace('block_0/', f'block_{i}/')] = tuple(array.shape)
    return shapes


def shape_differences(actual: Shapes, expected: Shapes) -> list[str]:
    """Lists each tensor that is missing, unknown or of another shape than expected."""

    def describe(name: str) -> str:
        if name not in actual:
            return f'{name} is missing'
        if name not in expected:
            return f'{name} is unknown'
        return f'{name} has shape {actual[name]}, not {expected[name]}'

    names = sorted(actual.keys() | expected.keys())
    return [describe(name) for name in names if actual.get(name) != expected.get(name)]


def join_first(items: Sequence[str], count: int = 12) -> str:
    """Joins the first `count` items, and adds how many more there are."""
    more = len(items) - count
    return '; '.join(items[:count]) + (f'; and {more} more' if more > 0 else '')
