"""Tensors under another library's names <-> a model of ours. Nothing is read or written here."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mae_jax.config.model import make_architecture
from mae_jax.errors import UserError
from mae_jax.files.tensors import Tensors
from mae_jax.interop.detect import describe
from mae_jax.interop.foreign import Foreign
from mae_jax.interop.modules import Kind, Shapes, differences, kind_of, shapes_of, some
from mae_jax.interop.name_maps import SPELLINGS, Rule, Sizes, number_blocks
from mae_jax.interop.trained import Trained, flat, unflat

PIXELS = ('normalized_pixel', 'pixel')
"""The targets that other libraries know."""


def to_ours(
    foreign: Foreign, given: dict[str, Any], say: Callable[[str], None] = lambda line: None
) -> Trained:
    """A checkpoint of another library as a model of ours.

    Args:
      foreign: the checkpoint.
      given: what it does not state, or states wrongly: see `facts.py`.
      say: is told what was assumed and left out.

    Raises:
      UserError: tensors are missing, unknown or of other shapes: they are listed.
    """
    config, assumed = describe(foreign, given)
    if 'mask' in config:
        kind = Kind('mae')
    else:
        kind = (
            Kind('classifier', config.num_classes) if 'num_classes' in config else Kind('encoder')
        )
    shapes = shapes_of(config, kind)
    rules = number_blocks(SPELLINGS[foreign.spelling], shapes)
    wanted = _their_shapes(rules, config, shapes)
    found = {name: tensor.shape for name, tensor in foreign.tensors.items()}
    if problems := differences(found, wanted):
        raise UserError(
            f'it is no model that is known here ({foreign.spelling}): {some(problems)}.'
        )
    if odd := [name for name in wanted if foreign.tensors[name].dtype != np.float32]:
        raise UserError(
            f'{some(odd)}: numbers of type {foreign.tensors[odd[0]].dtype}, not floats.'
        )
    if assumed:
        say(f'assumed, as the file does not say: {", ".join(assumed)}')
    if foreign.spelling in ('augreg', 'big_vision'):
        say('these were trained with an approximation of GELU, which is exact here')
    if foreign.left_out:
        say(f'left out, as no part of the model: {some(groups(foreign.left_out, parts=2))}')
    tensors = {
        rule.ours: rule.layout.to_ours(*(foreign.tensors[name] for name in rule.theirs))
        for rule in rules
    }
    return Trained(*unflat(tensors), None, config)


def to_theirs(trained: Trained, spelling: str) -> Tensors:
    """A model of ours under the names, and in the layout, of a spelling.

    Raises:
      UserError: some of it has no place there.
    """
    if spelling == 'official' and trained.model_state:
        spelling = 'official_probe'
    tensors = flat(trained)
    if 'decoder' in trained.params and trained.config.target.name not in PIXELS:
        raise UserError(
            f"'{spelling}' knows models of pixels, and this one predicts "
            f"target.name='{trained.config.target.name}': convert to 'mae_jax', or give "
            '--encoder_only.'
        )
    rules = number_blocks(SPELLINGS[spelling], tensors)
    homeless = groups(tensors.keys() - {rule.ours for rule in rules})
    if homeless:
        raise UserError(
            f"'{spelling}' has no place for {some(homeless)}: convert to another format, or give "
            '--encoder_only.'
        )
    named = {}
    for rule in rules:
        parts = rule.layout.to_theirs(np.asarray(tensors[rule.ours]), _sizes(trained.config, rule))
        named |= dict(zip(rule.theirs, parts, strict=True))
    if spelling == 'official_probe':  # PyTorch counts, and uses it for nothing here
        named['head.0.num_batches_tracked'] = np.array(trained.step or 0, np.int64)
    if spelling == 'huggingface' and kind_of(tensors).name == 'encoder':
        named = {name.removeprefix('vit.'): tensor for name, tensor in named.items()}
    return named


def groups(names: Iterable[str], parts: int = 1) -> list[str]:
    """The first parts of each name, once."""
    return sorted({'.'.join(name.replace('/', '.').split('.')[:parts]) for name in names})


def _their_shapes(rules: list[Rule], config: ConfigDict, shapes: Shapes) -> Shapes:
    """Found by laying out arrays that take no memory."""
    wanted = {}
    for rule in rules:
        empty = np.broadcast_to(np.float32(0), shapes[rule.ours])
        parts = rule.layout.to_theirs(empty, _sizes(config, rule))
        wanted |= {name: part.shape for name, part in zip(rule.theirs, parts, strict=True)}
    return wanted


def _sizes(config: ConfigDict, rule: Rule) -> Sizes:
    sizes = make_architecture(config.model)
    decoder = rule.ours.startswith('decoder/')
    return Sizes(sizes['patch_size'], config.model.decoder_heads if decoder else sizes['heads'])
