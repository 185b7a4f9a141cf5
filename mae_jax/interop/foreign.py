"""Reads checkpoints of other libraries: their tensors, naming scheme and metadata."""

import argparse
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mae_jax.errors import UserError
from mae_jax.files.limits import is_inside, read_json, reason
from mae_jax.files.paths import absolute
from mae_jax.files.tensors import Tensors, read_npz, read_pth, read_safetensors, unreadable
from mae_jax.interop import beit_names, huggingface
from mae_jax.interop.name_maps import hub_name

PTH_SUFFIXES = ('.pth', '.pt', '.bin', '.tar')
DIRECTORY_WEIGHTS = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
)
WRAPPERS = ('model', 'state_dict', 'teacher')
"""Keys of the tensors in a training checkpoint: of MAE and DeiT, MoCo v3, DINO."""
PREFIXES = ('module.base_encoder.', 'module.backbone.', 'base_encoder.', 'backbone.', 'module.')
"""Prefixes of the encoder's names; of several networks the first in this order is read."""

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
INCEPTION = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
MOCO_SMALL = dict(width=(384,), heads=12)
"""MoCo v3's small ViT has heads half as wide as other small ViTs."""


class Foreign(NamedTuple):
    """A checkpoint of another library, with that library's names."""

    naming: str
    """Naming scheme: a key of `name_maps.NAME_MAPS`."""
    tensors: Tensors
    stated: dict[str, Any]
    """Hyperparameters in the file's metadata, or known of its kind; see `hyperparameters.py`."""
    left_out: list[str]
    """Names of tensors that do not belong to the model, such as a projector."""
    config: dict[str, Any] = {}
    """Content of the config.json beside the tensors; empty where there is none."""


def read_foreign(path: str | os.PathLike) -> Foreign:
    """Reads a checkpoint of another library: a file, or a directory of Hugging Face or timm.

    Raises:
      UserError: it is missing, damaged, of an unknown kind, or would run code.
    """
    path = absolute(path)
    directory = path if path.is_dir() else path.parent
    if path.is_dir():
        files = [path / name for name in DIRECTORY_WEIGHTS if (path / name).exists()]
        if not files:
            names = ' or '.join(DIRECTORY_WEIGHTS)
            raise UserError(
                f'{path} is neither a work directory nor one of its checkpoints, and has no '
                f'{names}: give the path of a model.'
            )
        path = files[0]
    stated, config = _read_configs(directory) if path.name in DIRECTORY_WEIGHTS else ({}, {})
    kind = path.suffix.lower()
    if path.name.endswith('.index.json'):
        tensors = _read_shards(path)
    elif kind == '.safetensors':
        tensors = read_safetensors(path)[0]
    elif kind == '.npz':
        tensors = read_npz(path)
    elif kind in PTH_SUFFIXES:
        tensors, arguments = _unwrap(path, read_pth(path))
        stated = arguments | stated
    else:
        suffixes = ', '.join((*PTH_SUFFIXES, '.safetensors', '.npz'))
        raise UserError(f'{path} is of an unknown kind: a name ends in {suffixes}.')
    tensors = {name: _float32(path, name, tensor) for name, tensor in tensors.items()}
    try:
        return recognise(tensors, stated)._replace(config=config)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error


def _read_shards(path: epath.Path) -> Tensors:
    """Reads the tensors of all files in an index."""
    try:
        names = sorted(set(read_json(path)['weight_map'].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise unreadable(path, 'index', reason(error)) from error
    tensors = {}
    for name in names:
        if not is_inside(name) or os.path.basename(name) != name:
            raise unreadable(path, 'index', f'{name!r} is not the name of a file beside it')
        tensors |= read_safetensors(path.parent / name)[0]
    return tensors


def _unwrap(path: epath.Path, content: Any) -> tuple[Tensors, dict[str, Any]]:
    """Returns the tensors of a PyTorch checkpoint, and the hyperparameters in its arguments."""
    if not isinstance(content, Mapping):
        kind = 'tensor' if isinstance(content, np.ndarray) else type(content).__name__
        raise unreadable(path, 'PyTorch', f'it holds a {kind}, not named tensors')
    inner = next((content[k] for k in WRAPPERS if isinstance(content.get(k), Mapping)), content)
    tensors = {name: x for name, x in inner.items() if isinstance(x, np.ndarray)}
    if not tensors:
        raise unreadable(path, 'PyTorch', 'it holds no named tensors')
    return tensors, _read_arguments(content.get('args'))


def _read_arguments(args: Any) -> dict[str, Any]:
    """Returns the hyperparameters in the command line arguments of an official training run."""
    arguments = vars(args) if isinstance(args, argparse.Namespace) else {}
    normalized, mask_ratio = arguments.get('norm_pix_loss'), arguments.get('mask_ratio')
    stated = {}
    if isinstance(normalized, bool):
        stated['target'] = 'normalized_pixel' if normalized else 'pixel'
    if isinstance(mask_ratio, float) and 0 < mask_ratio < 1:
        stated['mask_ratio'] = mask_ratio
    return stated


def _read_configs(path: epath.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the JSON files beside weights of Hugging Face or timm.

    Returns:
      (hyperparameters, content of config.json).
    """
    stated, contents = {}, {}
    for name, read in (
        ('config.json', huggingface.read_config),
        ('preprocessor_config.json', huggingface.read_preprocessor),
    ):
        if (path / name).exists():
            try:
                contents[name] = read_json(path / name)
                stated |= read(contents[name])
            except UserError:
                raise
            except Exception as error:  # an untrusted file can raise errors of any kind
                raise unreadable(path / name, 'configuration', reason(error)) from error
    return stated, contents.get('config.json', {})


def _float32(path: epath.Path, name: str, tensor: np.ndarray) -> np.ndarray:
    """Converts shorter floats to float32, without loss; raises a UserError for longer ones."""
    if tensor.dtype == np.float64:
        raise UserError(f'{path}: {name} is float64, and would be rounded: save it as float32.')
    if tensor.dtype.names:
        raise UserError(f'{path}: {name} holds records, where numbers are needed.')
    return np.asarray(tensor, np.float32) if tensor.dtype.kind in 'fV' else tensor


def recognise(tensors: Tensors, stated: dict[str, Any]) -> Foreign:
    """Detects the naming scheme, and removes prefixes and tensors of other networks.

    Raises:
      UserError: there is no Vision Transformer with a cls token in it.
    """
    if any('Transformer/' in name for name in tensors):
        return _flax_vit(tensors, stated)
    if any(name.endswith('embeddings.cls_token') for name in tensors):
        return _hugging_face({hub_name(name): x for name, x in tensors.items()}, stated)
    own, left_out, prefix = _without_prefix(tensors)
    if 'patch_embed.proj.weight' not in own:
        first = ', '.join(sorted(tensors)[:3])
        raise UserError(f'it holds no Vision Transformer of a known format (but {first}).')
    if any(map(beit_names.is_beit, own)):
        unused = ('mask_token', 'lm_head.', 'fpn') + (() if 'head.weight' in own else ('fc_norm.',))
        foreign = _beit('beit', own, unused, stated)
        return foreign._replace(left_out=left_out + foreign.left_out)
    width = own['patch_embed.proj.weight'].shape[:1]
    if 'base_encoder' in prefix and width == MOCO_SMALL['width']:
        stated = {'heads': MOCO_SMALL['heads']} | stated
    if 'head.0.running_mean' in own and 'head.1.weight' in own and prefix in ('', 'module.'):
        own = {n: x for n, x in own.items() if n != 'head.0.num_batches_tracked'}  # unused
        return Foreign('official_probe', own, stated, left_out)
    layers = any(re.match(r'head\.\w+\.', name) for name in own)
    projector = ('head.',) if layers else ()  # of self-supervision, not a classifier
    foreign = _leaving_out('official', own, projector, stated)
    return foreign._replace(left_out=left_out + foreign.left_out)


def _hugging_face(tensors: Tensors, stated: dict[str, Any]) -> Foreign:
    """Recognises a model whose tensors have the names on the hub."""
    if not any(map(beit_names.is_beit, tensors)):
        return _leaving_out('huggingface', tensors, ('vit.pooler.',), stated)
    named = {beit_names.beit_name(name): tensor for name, tensor in tensors.items()}
    if len(named) < len(tensors):
        raise UserError('it has two final norms, and is no model that BEiT has.')
    heads = {name.split('.')[0] + '.' for name in named} - {'beit.', 'classifier.'}
    pooler = set() if 'classifier.weight' in named else {'beit.pooler.'}
    unused = ('beit.embeddings.mask_token', *heads, *pooler)
    return _beit('huggingface_beit', named, unused, stated)


def _beit(
    naming: str, tensors: Tensors, unused: tuple[str, ...], stated: dict[str, Any]
) -> Foreign:
    """Recognises BEiT, of which only models of ImageNet-22k are published, with its statistics."""
    tensors = {n: x for n, x in tensors.items() if not n.endswith(beit_names.INDEX)}
    naming += '_shared' * (beit_names.SHARED[naming] in tensors)
    foreign = _leaving_out(naming, tensors, unused, INCEPTION | stated)
    return foreign._replace(left_out=[name.removeprefix('beit.') for name in foreign.left_out])


def _without_prefix(tensors: Tensors) -> tuple[Tensors, list[str], str]:
    """Returns (tensors of the encoder without prefix, names of other networks, prefix)."""
    for prefix in PREFIXES:
        if f'{prefix}cls_token' in tensors:
            own = {n[len(prefix) :]: x for n, x in tensors.items() if n.startswith(prefix)}
            return own, [name for name in tensors if not name.startswith(prefix)], prefix
    return tensors, [], ''


def _flax_vit(tensors: Tensors, stated: dict[str, Any]) -> Foreign:
    # big_vision stores parameters under params/, and the optimiser's state beside them.
    left_out = []
    if any(name.startswith('params/') for name in tensors):
        left_out = [name for name in tensors if not name.startswith('params/')]
        tensors = {n[7:]: x for n, x in tensors.items() if n.startswith('params/')}
    naming = 'big_vision' if 'pos_embedding' in tensors else 'augreg'
    unused = ('pre_logits/', 'head/') if 'pre_logits/kernel' in tensors else ()
    foreign = _leaving_out(naming, tensors, unused, INCEPTION | stated)
    return foreign._replace(left_out=left_out + foreign.left_out)


def _leaving_out(
    naming: str, tensors: Tensors, prefixes: tuple[str, ...], stated: dict[str, Any]
) -> Foreign:
    left_out = [name for name in tensors if name.startswith(prefixes)]
    kept = {name: x for name, x in tensors.items() if not name.startswith(prefixes)}
    return Foreign(naming, kept, stated, left_out)
