"""Reads a trained model from a run or from one file, and writes such a file.

The file is safetensors. Its tensors have the names of our parameters, such as `encoder/norm/scale`,
or of running statistics, such as `batch_stats/feature_norm/mean`. Its metadata holds, under
`mae_jax`, JSON: {version, step, config}, and `class_names` of a classifier that knows them. The
config is that of the run that trained the model. A converted model has only the fields that are
known: model, image size, mean and std, mask ratio and target.
"""

import json
import os
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from mae_jax.checkpoints.find import locate
from mae_jax.checkpoints.weights import restore_weights
from mae_jax.config.model import statistics
from mae_jax.config.saved import from_json, load_config, to_json
from mae_jax.errors import UserError
from mae_jax.files.limits import parse_json, read_json, reason
from mae_jax.files.paths import absolute
from mae_jax.files.tensors import read_safetensors, read_safetensors_metadata, write_safetensors
from mae_jax.interop.hyperparameters import check_hyperparameters, hyperparameters

HEADER = 'mae_jax'
VERSION = 1
CLASS_NAMES = 'class_names.json'
"""Lies in the work directory of a classifier: a list, in the order of the logits."""
CLASS_COLOURS = 'class_colours.json'
"""Lies in the work directory of a segmenter: a list of [red, green, blue]."""
DETECTED = 'box_head/classes/bias'
"""Parameter of a detector that has a number for each class, and one for no object."""
COLLECTIONS = ('batch_stats',)
"""First components of tensor names that are collections of running statistics, not modules."""


class Trained(NamedTuple):
    """A trained model."""

    params: Any
    """Nested dicts of float32 numpy arrays: {'encoder': ...}, and 'decoder' (with the 'pca' of such
    a target) or 'head', if the model has one; of a detector all of its modules."""
    model_state: Any
    """Running statistics of batch norm, if any."""
    step: int | None
    """Step of training; None if unknown."""
    config: ConfigDict
    class_names: tuple[str, ...] = ()
    """Of a classifier, in the order of its logits; () if they are unknown."""


def is_file(path: str | os.PathLike) -> bool:
    """Returns whether a path is a file, rather than the directory of a run."""
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
        names = _of_head(_run_class_names(path), weights.params)
        return Trained(weights.params, weights.model_state, weights.step, config, names)
    if absolute(path).suffix != '.safetensors':
        raise _not_ours(path)
    tensors, metadata = read_safetensors(path)
    header = _header(path, metadata)
    try:
        params, model_state = unflat(tensors)
        params['encoder']['patch_embed']
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f'{path} is damaged: its tensors are not those of a model.') from error
    header['class_names'] = _of_head(header['class_names'], params)
    return Trained(params, model_state, **header)


def read_config(path: str | os.PathLike) -> ConfigDict:
    """Reads the config of a trained model without its tensors; `path` as for `read_trained`."""
    if not is_file(path):
        locate(path)  # raises UserError unless it is a work directory or a checkpoint
        return _checked(path, load_config(path))
    if absolute(path).suffix != '.safetensors':
        raise _not_ours(path)
    return _header(path, read_safetensors_metadata(path))['config']


def write_trained(path: str | os.PathLike, trained: Trained) -> None:
    """Writes a model with its config to one local file, without the paths in the config."""
    config = trained.config.copy_and_resolve_references()
    config.init_from = None
    config.dataset.path = None
    if str(config.get('target', {}).get('tokenizer')).endswith('.safetensors'):
        config.target.tokenizer = None
    header = {'version': VERSION, 'step': trained.step, 'config': to_json(config)}
    if trained.class_names:
        header['class_names'] = list(trained.class_names)
    write_safetensors(path, flat(trained), {HEADER: json.dumps(header)})


def flat(trained: Trained) -> dict[str, np.ndarray]:
    """Returns the tensors of a model by their names in a file."""
    return traverse_util.flatten_dict(trained.params | trained.model_state, sep='/')


def unflat(tensors: dict[str, np.ndarray]) -> tuple[Any, Any]:
    """Inverts `flat`: returns (params, model_state)."""
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
        names = _as_names(header.get('class_names', []))
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f'{path} is damaged: its header is not one of mae_jax.') from error
    return {'step': step, 'config': _checked(path, config), 'class_names': names}


def _run_class_names(path: str | os.PathLike) -> tuple[str, ...]:
    """Reads the class names of a work directory or one of its checkpoints; () if it has none."""
    path = absolute(path)
    for folder in (path, path.parent, path.parent.parent):
        if (folder / 'config.json').exists():
            file = folder / CLASS_NAMES
            try:
                return _as_names(read_json(file)) if file.exists() else ()
            except (OSError, ValueError) as error:
                raise UserError(f'{file} is damaged ({reason(error)}): delete it.') from error
    return ()


def _of_head(names: tuple[str, ...], params: Any) -> tuple[str, ...]:
    """Returns the names if there is one for each class of the head, else ()."""
    heads = {name: params.get(name) for name in ('head', 'box_head')}
    biases = traverse_util.flatten_dict(heads, sep='/')
    classes = np.size(biases.get('head/bias', ())), np.size(biases.get(DETECTED, ())) - 1
    return names if len(names) in classes else ()


def _as_names(content: Any) -> tuple[str, ...]:
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError('it is no list of names')
    return tuple(content)


def _checked(path: str | os.PathLike, config: ConfigDict) -> ConfigDict:
    """Returns an untrusted config if it is that of a model; raises a UserError otherwise."""
    try:
        check_hyperparameters(hyperparameters(config))
        statistics(config)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    except Exception as error:  # an untrusted config can raise errors of any kind
        raise UserError(f'{path} is damaged: its config is not that of a model.') from error
    return config


def _not_ours(path: str | os.PathLike) -> UserError:
    return UserError(
        f'{path} is not in the format of mae_jax, nor a file of another library: give a run or a '
        'file that ends in .safetensors, .pth or .npz.'
    )
