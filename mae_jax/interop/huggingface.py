"""Reads and writes the JSON files of Hugging Face (and timm), and writes its directories."""

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mae_jax.config.model import encoder_options, image_size, make_architecture, norm_eps
from mae_jax.errors import UserError
from mae_jax.files.tensors import write_safetensors
from mae_jax.interop.beit_names import TABLE
from mae_jax.interop.modules import Kind
from mae_jax.models.options import EncoderOptions

ARCHITECTURES = {
    'mae': 'ViTMAEForPreTraining',
    'classifier': 'ViTForImageClassification',
    'encoder': 'ViTModel',
}
"""Kind of a model -> Hugging Face's class."""
BEIT_ARCHITECTURES = {'classifier': 'BeitForImageClassification', 'encoder': 'BeitModel'}
"""The same of BEiT."""

STATED = {
    'num_attention_heads': 'heads',
    'decoder_num_attention_heads': 'decoder_heads',
    'layer_norm_eps': 'norm_eps',
    'mask_ratio': 'mask_ratio',
    'image_size': 'image_size',
}
"""Field of config.json -> hyperparameter."""

NORM_EPS = 1e-12
"""transformers' default of layer_norm_eps; configs on the hub have it, the official MAE 1e-6."""

_VIT = {'num_attention_heads': 12, 'layer_norm_eps': NORM_EPS, 'image_size': 224}
_MAE = {'decoder_num_attention_heads': 16, 'mask_ratio': 0.75, 'norm_pix_loss': False}
DEFAULTS = {'vit': _VIT, 'vit_mae': _VIT | _MAE, 'beit': _VIT}
"""model_type -> what transformers computes with where config.json lacks a field."""


def read_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the hyperparameters in the content of config.json, by the names we use.

    Raises:
      UserError: the model computes something else than ours.
    """
    if 'architecture' in config:  # timm's
        return read_timm(config)
    expected = {'hidden_act': 'gelu', 'qkv_bias': True}
    for field, value in expected.items():
        if config.get(field, value) != value:
            raise UserError(
                f'config.json has {field}={config[field]!r}, and the ViT of MAE has {value!r}.'
            )
    if config.get('model_type') in DEFAULTS:
        config = DEFAULTS[config['model_type']] | config
    stated = {ours: config[theirs] for theirs, ours in STATED.items() if theirs in config}
    if 'norm_pix_loss' in config:
        stated['target'] = 'normalized_pixel' if config['norm_pix_loss'] else 'pixel'
    return stated


def read_timm(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the hyperparameters in timm's config.json; the name of an architecture has none."""
    data = config.get('pretrained_cfg', {})
    stated = {name: tuple(data[name]) for name in ('mean', 'std') if name in data}
    if 'input_size' in data:
        stated['image_size'] = tuple(data['input_size'][1:])
    return stated


def read_preprocessor(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the normalisation of images in the content of preprocessor_config.json."""
    stated = {'scale': 1.0}
    if config.get('do_rescale', True):
        stated['scale'] = float(f'{1 / config.get("rescale_factor", 1 / 255):.12g}')
    if config.get('do_normalize', True):
        names = {'image_mean': 'mean', 'image_std': 'std'}
        stated |= {
            ours: tuple(config[theirs]) for theirs, ours in names.items() if theirs in config
        }
    else:
        channels = len(config.get('image_mean', (0, 0, 0)))
        stated |= {'mean': (0.0,) * channels, 'std': (1.0,) * channels}
    return stated


def write(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    config: ConfigDict,
    kind: Kind,
    class_names: Sequence[str] = (),
) -> None:
    """Writes a directory that transformers' `from_pretrained` can open."""
    files = {
        'config.json': make_config(config, kind, class_names, tensors),
        'preprocessor_config.json': make_preprocessor(config),
    }
    directory = Path(path)
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content, indent=2) + '\n')
    write_safetensors(directory / 'model.safetensors', tensors, {'format': 'pt'})


def architecture_of(config: ConfigDict, kind: Kind) -> str:
    """Returns Hugging Face's class of a model of ours."""
    is_beit = encoder_options(config.model).relative_positions == 'beit'
    return (BEIT_ARCHITECTURES if is_beit else ARCHITECTURES)[kind.name]


def make_config(
    config: ConfigDict,
    kind: Kind,
    class_names: Sequence[str] = (),
    tensors: Collection[str] = (),
) -> dict[str, Any]:
    """Makes the content of config.json for a model of ours, with tensors of these names."""
    model, sizes, size = config.model, make_architecture(config.model), image_size(config)
    if kind.name == 'mae' and size[0] != size[1]:
        raise UserError(
            f"Hugging Face's ViTMAE takes only squares, and this model {size[0]} x {size[1]}: "
            "give --encoder_only, or convert to 'official'."
        )
    content = {
        'architectures': [architecture_of(config, kind)],
        'model_type': 'vit_mae' if kind.name == 'mae' else 'vit',
        'hidden_size': sizes['width'],
        'num_hidden_layers': sizes['depth'],
        'num_attention_heads': sizes['heads'],
        'intermediate_size': 4 * sizes['width'],
        'patch_size': sizes['patch_size'],
        'image_size': size[0] if size[0] == size[1] else list(size),
        'num_channels': config.dataset.channels,
        'hidden_act': 'gelu',
        'qkv_bias': True,
        'layer_norm_eps': norm_eps(model),
        'hidden_dropout_prob': 0.0,
        'attention_probs_dropout_prob': 0.0,
        'initializer_range': 0.02,
    }
    if encoder_options(model).relative_positions == 'beit':
        content |= _beit(encoder_options(model), tensors)
    if kind.name == 'mae':
        content |= {
            'decoder_hidden_size': model.decoder_width,
            'decoder_num_hidden_layers': model.decoder_depth,
            'decoder_num_attention_heads': model.decoder_heads,
            'decoder_intermediate_size': 4 * model.decoder_width,
            'mask_ratio': config.mask.ratio,
            'norm_pix_loss': config.target.name == 'normalized_pixel',
        }
    if kind.name == 'classifier':
        names = class_names or [f'LABEL_{i}' for i in range(kind.classes)]
        content['id2label'] = {str(i): name for i, name in enumerate(names)}
        content['label2id'] = {name: i for i, name in enumerate(names)}
    return content


def _beit(options: EncoderOptions, tensors: Collection[str]) -> dict[str, Any]:
    """Returns the fields of config.json that BEiT adds or changes."""
    shared = any(name.endswith('encoder.relative_position_bias.' + TABLE) for name in tensors)
    return {
        'model_type': 'beit',
        'use_absolute_position_embeddings': options.absolute_positions,
        'use_relative_position_bias': not shared,
        'use_shared_relative_position_bias': shared,
        'layer_scale_init_value': options.layer_scale or 0.0,
        'use_mean_pooling': any(name.endswith('pooler.layernorm.weight') for name in tensors),
    }


def make_preprocessor(config: ConfigDict) -> dict[str, Any]:
    """Makes the content of preprocessor_config.json: the size and normalisation of images."""
    height, width = image_size(config)
    return {
        'image_processor_type': 'ViTImageProcessor',
        'do_normalize': True,
        'do_rescale': True,
        'do_resize': True,
        'image_mean': list(config.dataset.mean),
        'image_std': list(config.dataset.std),
        'rescale_factor': 1 / config.dataset.scale,
        'resample': 3,  # Pillow's number for bicubic
        'size': {'height': height, 'width': width},
    }
