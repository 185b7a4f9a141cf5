"""Checkpoints of other libraries on disk: which spelling they are in, and what else they state."""

import argparse
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mae_jax.errors import UserError
from mae_jax.files.limits import read_json, reason, within
from mae_jax.files.paths import absolute
from mae_jax.files.tensors import Tensors, damaged, read_npz, read_pth, read_safetensors
from mae_jax.interop import huggingface
from mae_jax.interop.name_maps import hub_name

PTH_SUFFIXES = ('.pth', '.pt', '.bin', '.tar')
WEIGHTS_OF_A_DIRECTORY = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
)
WRAPPERS = ('model', 'state_dict', 'teacher')
"""Under which key a training checkpoint holds its tensors: MAE and DeiT, MoCo v3, DINO."""
PREFIXES = ('module.base_encoder.', 'module.backbone.', 'base_encoder.', 'backbone.', 'module.')
"""What stands before the encoder's names; of several networks the first is taken."""

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
INCEPTION = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
MOCO_SMALL = dict(width=(384,), heads=12)
"""MoCo v3's small ViT has heads half as wide as anyone else's."""


class Foreign(NamedTuple):
    """What a checkpoint of another library holds, under that library's names."""

    spelling: str
    """A key of `spellings.SPELLINGS`."""
    tensors: Tensors
    stated: dict[str, Any]
    """What the file says, or what is known of its kind, beside the tensors; see `facts.py`."""
    left_out: list[str]
    """Names of tensors that have no part in the model, such as a projector."""


def read_foreign(path: str | os.PathLike) -> Foreign:
    """Reads a file, or a directory of Hugging Face's or timm's.

    Raises:
      UserError: it is missing, damaged, of an unknown kind, or would run code.
    """
    path = absolute(path)
    directory = path if path.is_dir() else path.parent
    if path.is_dir():
        found = [path / name for name in WEIGHTS_OF_A_DIRECTORY if (path / name).exists()]
        if not found:
            names = ' or '.join(WEIGHTS_OF_A_DIRECTORY)
            raise UserError(f'{path} is a directory without {names}: give a file of weights.')
        path = found[0]
    stated = _read_configs(directory) if path.name in WEIGHTS_OF_A_DIRECTORY else {}
    kind = path.suffix.lower()
    if path.name.endswith('.index.json'):
        tensors = _read_shards(path)
    elif kind == '.safetensors':
        tensors = read_safetensors(path)[0]
    elif kind == '.npz':
        tensors = read_npz(path)
    elif kind in PTH_SUFFIXES:
        tensors, said = _unwrap(path, read_pth(path))
        stated = said | stated
    else:
        known = ', '.join((*PTH_SUFFIXES, '.safetensors', '.npz'))
        raise UserError(f'{path} is of an unknown kind: a name ends in {known}.')
    tensors = {name: _float32(path, name, tensor) for name, tensor in tensors.items()}
    try:
        return recognise(tensors, stated)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error


def _read_shards(path: epath.Path) -> Tensors:
    """The tensors of all files that an index names."""
    try:
        names = sorted(set(read_json(path)['weight_map'].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, 'index', reason(error)) from error
    tensors = {}
    for name in names:
        if not within(name) or os.path.basename(name) != name:  # other directories are not its own
            raise damaged(path, 'index', f'{name!r} is no name of a file beside it')
        tensors |= read_safetensors(path.parent / name)[0]
    return tensors


def _unwrap(path: epath.Path, content: Any) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of a PyTorch checkpoint, and what it says beside them."""
    if not isinstance(content, Mapping):
        told = 'tensor' if isinstance(content, np.ndarray) else type(content).__name__
        raise damaged(path, 'PyTorch', f'it holds a {told}, not named tensors')
    inner = next((content[k] for k in WRAPPERS if isinstance(content.get(k), Mapping)), content)
    tensors = {name: x for name, x in inner.items() if isinstance(x, np.ndarray)}
    if not tensors:
        raise damaged(path, 'PyTorch', 'it holds no named tensors')
    return tensors, _said(content.get('args'))


def _said(args: Any) -> dict[str, Any]:
    """What the command line of an official training run tells of the model."""
    said = vars(args) if isinstance(args, argparse.Namespace) else {}
    stated = {}
    if isinstance(said.get('norm_pix_loss'), bool):
        stated['target'] = 'normalized_pixel' if said['norm_pix_loss'] else 'pixel'
    if isinstance(said.get('mask_ratio'), float) and 0 < said['mask_ratio'] < 1:
        stated['mask_ratio'] = said['mask_ratio']
    return stated


def _read_configs(path: epath.Path) -> dict[str, Any]:
    """What the JSON files beside Hugging Face's or timm's weights state."""
    stated = {}
    for name, read in (
        ('config.json', huggingface.read_config),
        ('preprocessor_config.json', huggingface.read_preprocessor),
    ):
        if (path / name).exists():
            try:
                stated |= read(read_json(path / name))
            except UserError:
                raise
            except Exception as error:  # it may be anything
                raise damaged(path / name, 'configuration', reason(error)) from error
    return stated


def _float32(path: epath.Path, name: str, tensor: np.ndarray) -> np.ndarray:
    """Parameters are float32 here: shorter ones lose nothing, longer ones are refused."""
    if tensor.dtype == np.float64:
        raise UserError(f'{path}: {name} is float64, and would be rounded: save it as float32.')
    if tensor.dtype.names:
        raise UserError(f'{path}: {name} holds records, where numbers are needed.')
    return np.asarray(tensor, np.float32) if tensor.dtype.kind in 'fV' else tensor


def recognise(tensors: Tensors, stated: dict[str, Any]) -> Foreign:
    """Finds out the spelling, and takes off what is wrapped around it.

    Raises:
      UserError: there is no Vision Transformer with a cls token in it.
    """
    if any('Transformer/' in name for name in tensors):
        return _flax_vit(tensors, stated)
    if any(name.endswith('embeddings.cls_token') for name in tensors):
        tensors = {hub_name(name): tensor for name, tensor in tensors.items()}
        return _leaving_out('huggingface', tensors, ('vit.pooler.',), stated)
    own, left_out, prefix = _without_prefix(tensors)
    if 'patch_embed.proj.weight' not in own:
        some = ', '.join(sorted(tensors)[:3])
        raise UserError(f'it holds no Vision Transformer that is known here (but {some}).')
    width = own['patch_embed.proj.weight'].shape[:1]
    if 'base_encoder' in prefix and width == MOCO_SMALL['width']:
        stated = {'heads': MOCO_SMALL['heads']} | stated
    if 'head.0.running_mean' in own and 'head.1.weight' in own and prefix in ('', 'module.'):
        own = {n: x for n, x in own.items() if n != 'head.0.num_batches_tracked'}  # a mere count
        return Foreign('official_probe', own, stated, left_out)
    layers = any(re.match(r'head\.\w+\.', name) for name in own)
    projector = ('head.',) if layers else ()  # of self-supervision, not a classifier
    found = _leaving_out('official', own, projector, stated)
    return found._replace(left_out=left_out + found.left_out)


def _without_prefix(tensors: Tensors) -> tuple[Tensors, list[str], str]:
    """(the encoder's tensors under their own names, names of other networks, prefix)."""
    for prefix in PREFIXES:
        if f'{prefix}cls_token' in tensors:
            own = {n[len(prefix) :]: x for n, x in tensors.items() if n.startswith(prefix)}
            return own, [name for name in tensors if not name.startswith(prefix)], prefix
    return tensors, [], ''


def _flax_vit(tensors: Tensors, stated: dict[str, Any]) -> Foreign:
    # big_vision keeps parameters under params/, and the optimiser's state beside them.
    left_out = []
    if any(name.startswith('params/') for name in tensors):
        left_out = [name for name in tensors if not name.startswith('params/')]
        tensors = {n[7:]: x for n, x in tensors.items() if n.startswith('params/')}
    spelling = 'big_vision' if 'pos_embedding' in tensors else 'augreg'
    unused = ('pre_logits/', 'head/') if 'pre_logits/kernel' in tensors else ()
    found = _leaving_out(spelling, tensors, unused, INCEPTION | stated)
    return found._replace(left_out=left_out + found.left_out)


def _leaving_out(
    spelling: str, tensors: Tensors, prefixes: tuple[str, ...], stated: dict[str, Any]
) -> Foreign:
    left_out = [name for name in tensors if name.startswith(prefixes)]
    kept = {name: x for name, x in tensors.items() if not name.startswith(prefixes)}
    return Foreign(spelling, kept, stated, left_out)
