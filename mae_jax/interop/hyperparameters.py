"""Hyperparameters that a model needs beside its tensors, whose shapes do not determine them."""

import math
from typing import Any

from ml_collections import ConfigDict

from mae_jax.config.model import image_size, make_architecture, norm_eps, statistics
from mae_jax.errors import UserError
from mae_jax.pretext.targets import TARGETS
from mae_jax.registry import is_path

FIELDS = {
    'heads': 'model.heads',
    'decoder_heads': 'model.decoder_heads',
    'norm_eps': 'model.norm_eps',
    'image_size': 'image_size',
    'scale': 'dataset.scale',
    'mean': 'dataset.mean',
    'std': 'dataset.std',
    'mask_ratio': 'mask.ratio',
    'target': 'target.name',
}
"""Name of each hyperparameter -> its field of a config."""


def hyperparameters(config: ConfigDict) -> dict[str, Any]:
    """Returns the hyperparameters in the config of a model, by name."""
    values = {
        'heads': make_architecture(config.model)['heads'],
        'norm_eps': norm_eps(config.model),
        'image_size': image_size(config),
        **{name: config.dataset[name] for name in ('scale', 'mean', 'std')},
    }
    if 'mask' in config:
        values['decoder_heads'] = config.model.decoder_heads
        values |= {'mask_ratio': config.mask.ratio, 'target': config.target.name}
    return values


def check_hyperparameters(values: dict[str, Any]) -> None:
    """Raises a UserError for a value of the wrong type, or out of range."""
    for name, value in values.items():
        is_sequence = isinstance(value, list | tuple)
        numbers = list(value) if is_sequence else [value]
        if name == 'target':
            is_valid = value in TARGETS or is_path(value)
        elif name in ('heads', 'decoder_heads', 'image_size'):
            is_valid = all(type(n) is int and n > 0 for n in numbers)
            is_valid = is_valid and (not is_sequence or name == 'image_size')
        else:
            is_valid = all(type(n) in (int, float) and math.isfinite(n) for n in numbers)
            is_valid = is_valid and is_sequence == (name in ('mean', 'std'))
            is_valid = is_valid and (name not in ('std', 'scale', 'norm_eps') or min(numbers) > 0)
            is_valid = is_valid and (name != 'norm_eps' or numbers[0] < 1)
        if not is_valid:
            raise UserError(f'{name}={value!r} is not possible: give --{name}.')


def override(config: ConfigDict, values: dict[str, Any]) -> ConfigDict:
    """Returns a copy of the config of a model with other values of hyperparameters.

    Raises:
      UserError: a value is wrong, or the model has no such hyperparameter.
    """
    check_hyperparameters(values)
    config = config.copy_and_resolve_references()
    unknown = values.keys() - hyperparameters(config).keys()
    if unknown:
        raise UserError(f'{min(unknown)} is given, and this model does not have it: leave it out.')
    for name, value in values.items():
        *group, field = FIELDS[name].split('.')
        node = config[group[0]] if group else config
        with node.unlocked(), node.ignore_type():
            node[field] = tuple(value) if isinstance(value, list | tuple) else value
    statistics(config)
    return config
