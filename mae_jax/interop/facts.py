"""Facts: what is to be known of a model beside its tensors, and no shape tells."""

import math
from typing import Any

from ml_collections import ConfigDict

from mae_jax.config.model import image_size, make_architecture, statistics
from mae_jax.errors import UserError
from mae_jax.pretext.targets import TARGETS
from mae_jax.registry import is_path

FIELDS = {
    'heads': 'model.heads',
    'decoder_heads': 'model.decoder_heads',
    'image_size': 'image_size',
    'scale': 'dataset.scale',
    'mean': 'dataset.mean',
    'std': 'dataset.std',
    'mask_ratio': 'mask.ratio',
    'target': 'target.name',
}
"""Each fact, and the field of a config that it is."""


def facts(config: ConfigDict) -> dict[str, Any]:
    """Those of a model, by name."""
    known = {
        'heads': make_architecture(config.model)['heads'],
        'image_size': image_size(config),
        **{name: config.dataset[name] for name in ('scale', 'mean', 'std')},
    }
    if 'mask' in config:
        known['decoder_heads'] = config.model.decoder_heads
        known |= {'mask_ratio': config.mask.ratio, 'target': config.target.name}
    return known


def check_facts(known: dict[str, Any]) -> None:
    """Raises a UserError for what is of the wrong type, or cannot be."""
    for name, value in known.items():
        several = isinstance(value, list | tuple)
        numbers = list(value) if several else [value]
        if name == 'target':
            sensible = value in TARGETS or is_path(value)
        elif name in ('heads', 'decoder_heads', 'image_size'):
            sensible = all(type(n) is int and n > 0 for n in numbers)
            sensible = sensible and (not several or name == 'image_size')
        else:
            sensible = all(type(n) in (int, float) and math.isfinite(n) for n in numbers)
            sensible = sensible and several == (name in ('mean', 'std'))
            sensible = sensible and (name not in ('std', 'scale') or min(numbers) > 0)
        if not sensible:
            raise UserError(f'{name}={value!r} cannot be: give --{name}.')


def restate(config: ConfigDict, given: dict[str, Any]) -> ConfigDict:
    """A copy of the config of a model of ours, with what its user knows better."""
    check_facts(given)
    config = config.copy_and_resolve_references()
    lacking = given.keys() - facts(config).keys()
    if lacking:
        raise UserError(f'{min(lacking)} is given, and this model has no such thing.')
    for name, value in given.items():
        *group, field = FIELDS[name].split('.')
        node = config[group[0]] if group else config
        with node.unlocked(), node.ignore_type():
            node[field] = tuple(value) if isinstance(value, list | tuple) else value
    statistics(config)
    return config
