"""A trained model and what is known of it: from a run, or from one file.

The file is safetensors. Its tensors have the names of our parameters, `encoder/norm/scale`, and
running statistics those of their collection, `batch_stats/feature_norm/mean`; its header holds,
under `mae_jax`, JSON: {version, step, config}. The config is that of the run the model comes from,
or, for a converted model, as much of one as is known of it: model, image size, mean and std, mask
ratio and target.
"""

import json
import os
import shlex
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from mae_jax.checkpoints.find import locate
from mae_jax.checkpoints.weights import restore_weights
from mae_jax.config.model import statistics
from mae_jax.config.saved import from_json, load_config, to_json
from mae_jax.errors import UserError
from mae_jax.files.limits import parse_json
from mae_jax.files.paths import absolute
from mae_jax.files.tensors import read_safetensors, read_safetensors_metadata, write_safetensors
from mae_jax.interop.facts import check_facts, facts

HEADER = 'mae_jax'
VERSION = 1
COLLECTIONS = ('batch_stats',)
"""Names that stand for a collection of running statistics, not for a module."""


class Trained(NamedTuple):
    """A trained model."""

    params: Any
    """Nested dicts of float32 numpy arrays: {'encoder': ...}, and 'decoder' (with the 'pca' of such
    a target), or 'head', if any."""
    model_state: Any
    """Running statistics of batch norm, if any."""
    step: int | None
    """Of training; None where it is not known."""
    config: ConfigDict


def is_file(path: str | os.PathLike) -> bool:
    """Whether it is one file, rather than a directory of a run."""
    path = absolute(path)
    return path.exists() and not path.is_dir()


def read_trained(path: str | os.PathLike) -> Trained:
    """Reads a work directory, one of its checkpoints, or a file that `write_trained` wrote.

    Raises:
      UserError: it is none of these, or damaged.
    """
    if not is_file(path):
        config = read_config(path)
        weights = restore_weights(*locate(path))
        return Trained(weights.params, weights.model_state, weights.step, config)
    if absolute(path).suffix != '.safetensors':
        raise _not_ours(path)
    tensors, metadata = read_safetensors(path)
    header = _header(path, metadata)
    try:
        params, model_state = unflat(tensors)
        params['encoder']['cls_token']
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f'{path} is damaged: its tensors are not those of a model.') from error
    return Trained(params, model_state, **header)


def read_config(path: str | os.PathLike) -> ConfigDict:
    """The config of what `read_trained` would read; its tensors are left alone."""
    if not is_file(path):
        locate(path)  # says what is wrong with the path
        return _checked(path, load_config(path))
    if absolute(path).suffix != '.safetensors':
        raise _not_ours(path)
    return _header(path, read_safetensors_metadata(path))['config']


def write_trained(path: str | os.PathLike, trained: Trained) -> None:
    """Writes one file that holds the model and says what it is.

    Paths of the machine it was trained on are left out of the config.
    """
    config = trained.config.copy_and_resolve_references()
    config.init_from = None
    config.dataset.path = None
    if str(config.get('target', {}).get('tokenizer')).endswith('.safetensors'):
        config.target.tokenizer = None
    header = {'version': VERSION, 'step': trained.step, 'config': to_json(config)}
    write_safetensors(path, flat(trained), {HEADER: json.dumps(header)})


def flat(trained: Trained) -> dict[str, np.ndarray]:
    """The tensors by the names they have in a file."""
    return traverse_util.flatten_dict(trained.params | trained.model_state, sep='/')


def unflat(tensors: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """Undoes `flat`: (params, model_state)."""
    tree = traverse_util.unflatten_dict(tensors, sep='/')
    state = {name: tree.pop(name) for name in COLLECTIONS if name in tree}
    return tree, state


def _header(path: str | os.PathLike, metadata: dict[str, str]) -> dict[str, Any]:
    if HEADER not in metadata:
        raise _not_ours(path)
    try:
        header = parse_json(metadata[HEADER])
        if header['version'] > VERSION:
            raise UserError(
                f'{path} was written by a newer mae_jax (version {header["version"]} of the '
                'format): upgrade.'
            )
        config = from_json(header['config'])
        step = header['step'] and int(header['step'])
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f'{path} is damaged: its header is not what mae_jax writes.') from error
    return {'step': step, 'config': _checked(path, config)}


def _checked(path: str | os.PathLike, config: ConfigDict) -> ConfigDict:
    """The config, which somebody else may have written, where it is one of a model."""
    try:
        check_facts(facts(config))
        statistics(config)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    except Exception as error:  # it can say anything
        raise UserError(f'{path} is damaged: its config is not that of a model.') from error
    return config


def _not_ours(path: str | os.PathLike) -> UserError:
    return UserError(
        f'{path} is not in the format of mae_jax: convert it first, by\n'
        f'    mae-jax convert {shlex.quote(os.fspath(path))} <name>.safetensors'
    )
