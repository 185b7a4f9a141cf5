"""Fills the unset fields of a config from the run that `init_from` names."""

import os
import re
from collections.abc import Mapping

from ml_collections import ConfigDict

from mae_jax.config.changes import ADDED
from mae_jax.config.fields import group_of
from mae_jax.config.model import OPTIONS, make_architecture, probed_depth
from mae_jax.config.recipe import keep
from mae_jax.config.saved import from_json, to_json
from mae_jax.errors import UserError
from mae_jax.experiment.workdir import has_begun
from mae_jax.files.paths import expand_home
from mae_jax.interop.read import read_config
from mae_jax.runtime.agreement import from_first

MODEL_FIELDS = ('variant', 'patch_size', 'width', 'depth', 'heads')
DATA = ('name', 'path')
PATHS = (
    'init_from',
    'dataset.path',
    'dataset.classes',
    'dataset.annotations',
    'target.tokenizer',
    'robustness.classes',
)
READING = ('bands', 'nodata')
STATISTICS = ('channels', 'scale', 'mean', 'std')


def inherit(config: ConfigDict, workdir: str) -> ConfigDict:
    """Returns a copy whose unset fields of model and data are those of the run `init_from`.

    In paths `~` is replaced, for good: config.json holds what the run has read.

    A model whose variant is given keeps its own sizes, and a named data set its own path. A run
    that has begun in `workdir` no longer needs the other: its own config has the fields, also those
    that were chosen from the data (`config/recipe.py`).

    Raises:
      UserError: a field is unset and there is no run to take it from.
    """
    config = expand_paths(config.copy_and_resolve_references())
    begun = from_first(lambda: has_begun(workdir))
    inherits = config.model.get('variant', '') is None
    if begun or config.init_from:
        if begun:
            source = from_json(from_first(lambda: to_json(read_config(workdir))))
        else:
            source = read_config(config.init_from)
        if inherits:
            _fill(config.model, source.model, MODEL_FIELDS)
        _fill(config, source, ('image_size',))
        _fill(config.model, source.model, ('norm_eps', *OPTIONS))
        named = config.dataset.name is not None
        if begun or (not named and _same_folder(config, source)):
            earlier = {'held_out_share': ADDED['dataset.held_out_share']}
            _fill(config.dataset, earlier | source.dataset.to_dict(), tuple(earlier))
        _fill(config.dataset, source.dataset, STATISTICS if named else STATISTICS + DATA + READING)
        _fill(config.dataset, source.dataset, ('flip',))  # a mirrored digit is another digit
        if not (named or begun):
            _check_data(config)
        if begun:
            keep(config, source)
    _fill(config.dataset, {'flip': True}, ('flip',))
    needed = {'': ('image_size',), 'model': ('variant',), 'dataset': ('name', *STATISTICS)}
    unset = [
        f'{group}.{field}'.removeprefix('.')
        for group, fields in needed.items()
        for field in fields
        if (config[group] if group else config).get(field, '') is None
    ]
    if unset:
        raise UserError(
            f'{", ".join(unset)} must be given, or taken from a pretrained model by '
            '--config.init_from=<its work directory>.'
        )
    if not (begun and inherits) and (block := config.get('probe_block', -1)) != -1:
        # The model ends there, and its norm follows. A second time this changes nothing.
        config.model.depth = probed_depth(block, make_architecture(config.model)['depth'])
    return config


def _same_folder(config: ConfigDict, source: ConfigDict) -> bool:
    """Returns whether a config reads the data of another: what that held out must stay held out."""
    paths = config.dataset.path, source.dataset.get('path')
    return paths[0] is None or (paths[1] and len(set(map(os.path.abspath, paths))) == 1)


def expand_paths(config: ConfigDict) -> ConfigDict:
    """Replaces `~` in the fields that hold a path, and returns the config."""
    for name in PATHS:
        group = group_of(config, name)
        field = name.rpartition('.')[2]
        if group is not None and isinstance(group[field], str):
            group[field] = expand_home(group[field])
    return config


def _check_data(config: ConfigDict) -> None:
    """Refuses a data set of another's config whose name would import or fetch code."""
    name, path = (config.dataset[field] for field in DATA)
    data = f'dataset.name={name!r}, dataset.path={path!r} of init_from={config.init_from}'
    if not isinstance(name, str | None) or not isinstance(path, str | None):
        raise UserError(f'{data} are no names: give dataset.name.')
    if names_code(name):
        raise UserError(f'{data} is of a namespace, and its code would be run: give dataset.name.')


def names_code(name: object) -> bool:
    """Returns whether a name in a config would import or fetch code: 'module:function'."""
    return isinstance(name, str) and bool(re.match(r'[^:/]*:[^\d*]', name))


def _fill(group: ConfigDict, source: Mapping, fields: tuple[str, ...]) -> None:
    for field in fields:
        if field in group and group[field] is None:  # a config of one's own may lack new ones
            group[field] = source.get(field)
