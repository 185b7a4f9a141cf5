"""Converts tensors with another library's names to a model of ours, and back, in memory."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mae_jax.config.model import encoder_options, make_architecture
from mae_jax.errors import UserError
from mae_jax.files.tensors import Tensors
from mae_jax.interop.detect import detect_config, has_norm
from mae_jax.interop.foreign import Foreign
from mae_jax.interop.modules import (
    Kind,
    Shapes,
    join_first,
    kind_of,
    shape_differences,
    shapes_of,
)
from mae_jax.interop.name_maps import NAME_MAPS, number_blocks
from mae_jax.interop.rules import Rule, Sizes
from mae_jax.interop.trained import Trained, flat, unflat

BEIT = {'official': 'beit', 'huggingface': 'huggingface_beit'}
"""Naming scheme -> that of BEiT in the same library."""
PIXELS = ('normalized_pixel', 'pixel')
"""Targets that other libraries support."""


def to_ours(
    foreign: Foreign, given: dict[str, Any], say: Callable[[str], None] = lambda line: None
) -> Trained:
    """Converts a checkpoint of another library to a model of ours.

    Args:
      foreign: the checkpoint.
      given: hyperparameters that override those of the checkpoint: see `hyperparameters.py`.
      say: called with a line for each kind of thing that was assumed or left out.

    Raises:
      UserError: tensors are missing, unknown or of other shapes: they are listed.
    """
    config, assumed = detect_config(foreign, given)
    if 'mask' in config:
        kind = Kind('mae')
    elif 'num_classes' in config:
        kind = Kind('classifier', config.num_classes)
    else:
        kind = Kind('encoder', has_norm=has_norm(foreign))
    shapes = shapes_of(config, kind)
    rules = number_blocks(NAME_MAPS[foreign.naming], shapes)
    expected = _their_shapes(rules, config, shapes)
    actual = {name: tensor.shape for name, tensor in foreign.tensors.items()}
    if problems := shape_differences(actual, expected):
        raise UserError(f'it is not a supported model ({foreign.naming}): {join_first(problems)}.')
    if others := [name for name in expected if foreign.tensors[name].dtype != np.float32]:
        raise UserError(
            f'{join_first(others)}: numbers of type {foreign.tensors[others[0]].dtype}, not floats.'
        )
    if assumed:
        say(f'assumed, because the file does not state it: {", ".join(assumed)}')
    if foreign.naming in ('augreg', 'big_vision'):
        say('note: trained with an approximation of GELU, which mae_jax computes exactly')
    if foreign.left_out:
        left_out = join_first(prefixes(foreign.left_out, components=2))
        say(f'left out, because the model does not contain it: {left_out}')
    tensors = {
        rule.ours: rule.layout.to_ours(*(foreign.tensors[name] for name in rule.theirs))
        for rule in rules
    }
    return Trained(*unflat(tensors), None, config)


def to_theirs(trained: Trained, naming: str) -> Tensors:
    """Converts a model of ours to the names and layouts of a naming scheme.

    Args:
      trained: the model.
      naming: 'official', 'huggingface', 'augreg' or 'big_vision'.

    Raises:
      UserError: the other library has no counterpart of some tensors, or of an option.
    """
    naming, tensors = choose_naming(trained, naming), flat(trained)
    if 'decoder' in trained.params and trained.config.target.name not in PIXELS:
        raise UserError(
            f"'{naming}' supports models of pixels, and this one predicts "
            f"target.name='{trained.config.target.name}': convert to 'mae_jax', or give "
            '--encoder_only.'
        )
    rules = number_blocks(NAME_MAPS[naming], tensors)
    unsupported = prefixes(tensors.keys() - {rule.ours for rule in rules})
    if unsupported:
        raise UserError(
            f"'{naming}' has no place for {join_first(unsupported)}: convert to another format, or "
            'give --encoder_only.'
        )
    converted = {}
    for rule in rules:
        arrays = rule.layout.to_theirs(np.asarray(tensors[rule.ours]), _sizes(trained.config, rule))
        converted |= dict(zip(rule.theirs, arrays, strict=True))
    if naming == 'official_probe':  # PyTorch expects this counter, and does not use its value
        converted['head.0.num_batches_tracked'] = np.array(trained.step or 0, np.int64)
    if naming.startswith('huggingface') and kind_of(tensors).name == 'encoder':
        converted = {n.removeprefix('vit.').removeprefix('beit.'): x for n, x in converted.items()}
    return converted


def choose_naming(trained: Trained, naming: str) -> str:
    """Returns the key of `NAME_MAPS` of a model: that of a probe, or of BEiT, has its own.

    Raises:
      UserError: the model has options that the other library does not have.
    """
    options = encoder_options(trained.config.model)
    known = {'key_bias'}  # one of zeros is none
    if options.relative_positions == 'beit' and not options.key_bias and naming in BEIT:
        known |= {'relative_positions', 'layer_scale', 'absolute_positions'}
        naming = BEIT[naming] + '_shared' * _is_shared(trained)
    elif naming == 'official' and trained.model_state:
        naming = 'official_probe'
    unknown = [f'model.{name}' for name in options.changed() if name not in known]
    if unknown:
        raise UserError(f"'{naming}' has no place for {', '.join(unknown)}: convert to 'mae_jax'.")
    return naming


def _is_shared(trained: Trained) -> bool:
    """Returns whether the blocks of BEiT share a table, as in pretraining."""
    blocks = trained.params['encoder']['blocks'].values()
    first, *others = (np.asarray(block['attention']['relative_table']) for block in blocks)
    return 'head' not in trained.params and all(np.array_equal(first, x) for x in others)


def prefixes(names: Iterable[str], components: int = 1) -> list[str]:
    """Returns the distinct prefixes of dotted names, of one or more components, sorted."""
    return sorted({'.'.join(name.replace('/', '.').split('.')[:components]) for name in names})


def _their_shapes(rules: list[Rule], config: ConfigDict, shapes: Shapes) -> Shapes:
    """Computes the shapes that the tensors of the other library must have."""
    expected = {}
    for rule in rules:
        empty = np.broadcast_to(np.float32(0), shapes[rule.ours])  # takes no memory
        arrays = rule.layout.to_theirs(empty, _sizes(config, rule))
        expected |= {name: array.shape for name, array in zip(rule.theirs, arrays, strict=True)}
    return expected


def _sizes(config: ConfigDict, rule: Rule) -> Sizes:
    sizes = make_architecture(config.model)
    decoder = rule.ours.startswith('decoder/')
    return Sizes(sizes['patch_size'], config.model.decoder_heads if decoder else sizes['heads'])
