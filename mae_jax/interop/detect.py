"""Derives the config of another library's model from shapes, metadata and common values."""

import math
import re
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mae_jax.config.model import statistics
from mae_jax.errors import UserError
from mae_jax.interop import huggingface
from mae_jax.interop.foreign import IMAGENET, Foreign
from mae_jax.interop.hyperparameters import check_hyperparameters
from mae_jax.interop.modules import join_first
from mae_jax.interop.name_maps import NAME_MAPS
from mae_jax.interop.rules import CONV, Rule
from mae_jax.models.relative import CLS_ENTRIES, table_rows
from mae_jax.models.transformer import NORM_EPS
from mae_jax.models.vit import VARIANTS

HEADS = {sizes['width']: sizes['heads'] for sizes in VARIANTS.values()}
"""Width of an encoder -> its usual number of heads."""
DECODER_HEADS = {512: 16}
"""Width of a decoder -> its usual number of heads."""
_BLOCK = 'encoder/blocks/block_{i}'
_TABLE = f'{_BLOCK}/attention/relative_table'
DEFAULTS = {'mask_ratio': 0.75, 'target': 'normalized_pixel'}
"""Values of the official checkpoints, which do not contain them."""


def detect_config(foreign: Foreign, given: dict[str, Any]) -> tuple[ConfigDict, list[str]]:
    """Derives the config of another library's checkpoint.

    Args:
      foreign: the checkpoint.
      given: hyperparameters from the user, which override those of the file.

    Returns:
      (config, assumptions): 'name=value' for each value that neither the file nor the user states.

    Raises:
      UserError: a tensor is missing, or a hyperparameter can be neither read nor assumed.
    """
    _check_names(foreign)
    known, assumed = _heads_from_shapes(foreign) | foreign.stated | given, []
    check_hyperparameters(known)

    def read(name: str, default: Any) -> Any:
        if name in known:
            return known[name]
        if default is None:
            raise UserError(
                f'The file does not state {name}, and it has no default: give --{name} to mae-jax '
                'convert.'
            )
        assumed.append(f'{name}={default}')
        return default

    sizes = _sizes(foreign) | _options(foreign)
    config = ConfigDict({'task': 'pretrain', 'init_from': None, 'model': sizes})
    model, kernel = config.model, _kernel(foreign)
    channels = kernel.shape[1] if _is_conv(foreign) else kernel.shape[2]
    config.image_size = _image_size(foreign, model.patch_size, known)
    model.heads = read('heads', HEADS.get(model.width))
    if foreign.naming.startswith('huggingface'):
        model.norm_eps = read('norm_eps', huggingface.NORM_EPS)
    else:
        model.norm_eps = known.get('norm_eps', NORM_EPS)  # of all libraries but transformers
    rgb = IMAGENET if channels == 3 else dict(mean=None, std=None)
    config.dataset = dict(
        name=None,
        path=None,
        channels=channels,
        scale=float(known.get('scale', 255.0)),
        mean=tuple(read('mean', rgb['mean'])),
        std=tuple(read('std', rgb['std'])),
    )
    if _has(foreign, 'decoder/'):
        model.decoder_width = _tensor(foreign, 'decoder/mask_token').shape[-1]
        model.decoder_depth = _depth(foreign, 'decoder')
        model.decoder_heads = read('decoder_heads', DECODER_HEADS.get(model.decoder_width))
        config.mask = {'ratio': read('mask_ratio', DEFAULTS['mask_ratio']), 'strategy': 'random'}
        config.target = {'name': read('target', DEFAULTS['target'])}
    elif _has(foreign, 'head/'):
        config.task = 'classify'
        config.num_classes = _tensor(foreign, 'head/bias').shape[0]
        model.pool = 'mean' if _has(foreign, 'fc_norm/') else 'cls'
        model.batch_norm = _has(foreign, 'batch_stats/')
        model.update(drop_path=0.0, head_std=2e-5)
    statistics(config)  # raises UserError unless there are as many as channels
    return config, assumed


def has_norm(foreign: Foreign) -> bool:
    """Returns whether an encoder has a final norm; only one of BEiT may have none."""
    return 'beit' not in foreign.naming or _has(foreign, 'encoder/norm/')


def _check_names(foreign: Foreign) -> None:
    """Raises a UserError for tensors of unknown names, before any error about missing shapes."""
    theirs = {name for rule in NAME_MAPS[foreign.naming] for name in rule.theirs}
    unknown = sorted(
        name
        for name in foreign.tensors
        if name not in theirs
        and re.sub(r'(?<=[._])\d+(?=[./])', '{i}', name, count=1) not in theirs
    )
    if unknown:
        raise UserError(
            f'it is not a supported model ({foreign.naming}): {join_first(unknown)} '
            f'{"is" if len(unknown) == 1 else "are"} unknown.'
        )


def _is_conv(foreign: Foreign) -> bool:
    """Returns whether the patch kernel is [D, C, P, P]; otherwise it is [P, P, C, D]."""
    return _rule(foreign, 'encoder/patch_embed/kernel').layout is CONV


def _kernel(foreign: Foreign) -> np.ndarray:
    kernel = _tensor(foreign, 'encoder/patch_embed/kernel')
    if kernel.ndim != 4 or 0 in kernel.shape:
        raise UserError(f'The patch embedding has shape {kernel.shape}: not a Vision Transformer.')
    return kernel


def _sizes(foreign: Foreign) -> dict[str, Any]:
    """Returns the fields of config.model that follow from shapes."""
    shape = _kernel(foreign).shape
    width, patch_size = (shape[0], shape[2]) if _is_conv(foreign) else (shape[3], shape[0])
    # The variant is only a name: all sizes are given beside it.
    named = [name for name, sizes in VARIANTS.items() if sizes['width'] == width]
    return {
        'variant': named[0] if named else 'vit_base',
        'patch_size': patch_size,
        'width': width,
        'depth': _depth(foreign, 'encoder'),
        'dtype': 'float32',
        'residual_dtype': 'float32',
        'remat': 'none',
        'scan': False,
    }


def _options(foreign: Foreign) -> dict[str, Any]:
    """Returns the fields of config.model in which BEiT differs from MAE."""
    if 'beit' not in foreign.naming:
        return {}
    options = {'relative_positions': 'beit', 'key_bias': False}
    options['absolute_positions'] = _has(foreign, 'encoder/pos_embed')
    if _has(foreign, f'{_BLOCK}/attention_scale'):
        # BEiT's initial values, from which the trained ones do not depend any more.
        options['layer_scale'] = 0.1 if _depth(foreign, 'encoder') < 24 else 1e-5
    return options


def _rule(foreign: Foreign, ours: str) -> Rule:
    return next(rule for rule in NAME_MAPS[foreign.naming] if rule.ours == ours)


def _tensor(foreign: Foreign, ours: str) -> np.ndarray:
    """Returns the tensor of the checkpoint that corresponds to one of our parameters."""
    name = _rule(foreign, ours).theirs[0].replace('{i}', '0')
    if name not in foreign.tensors or not foreign.tensors[name].ndim:
        raise UserError(
            f'{name} is missing: this is not a complete Vision Transformer with cls token.'
        )
    return foreign.tensors[name]


def _has(foreign: Foreign, prefix: str) -> bool:
    """Returns whether any tensor corresponds to one of our parameters with this prefix."""
    return any(
        name.replace('{i}', '0') in foreign.tensors
        for rule in NAME_MAPS[foreign.naming]
        if rule.ours.startswith(prefix)
        for name in rule.theirs
    )


def _depth(foreign: Foreign, module: str) -> int:
    """Returns the number of blocks: the highest plus one; missing blocks raise an error later."""
    name = _rule(foreign, f'{module}/blocks/block_{{i}}/norm1/scale').theirs[0]
    pattern = re.escape(name).replace(r'\{i\}', r'(\d{1,4})')
    matches = [re.fullmatch(pattern, name) for name in foreign.tensors]
    if not any(matches):
        raise UserError(f'{name.replace("{i}", "0")} is missing, and so are all blocks.')
    return max(int(match[1]) + 1 for match in matches if match)


def _image_size(foreign: Foreign, patch_size: int, known: dict[str, Any]) -> tuple[int, int]:
    """Returns the image size by the number of positions: a square, unless the size is known."""
    if 'beit' in foreign.naming:
        return _image_size_of_beit(foreign, patch_size, known)
    rule = _rule(foreign, 'encoder/pos_embed')
    table = _tensor(foreign, rule.ours)
    patches = (rule.layout.to_ours(table).shape[1] if table.ndim == 3 else 0) - 1
    side = math.isqrt(max(patches, 0)) * patch_size
    size = known.get('image_size', side)
    size = (size, size) if isinstance(size, int) else tuple(size)
    if patches < 1 or len(size) != 2 or math.prod(n // patch_size for n in size) != patches:
        shape = ' x '.join(map(str, size)) if 'image_size' in known else 'a square'
        raise UserError(
            f'The model has {patches} positions of patches of {patch_size} x {patch_size} pixels, '
            f'which {shape} does not have: give --image_size.'
        )
    return size


def _image_size_of_beit(
    foreign: Foreign, patch_size: int, known: dict[str, Any]
) -> tuple[int, int]:
    """Returns the image size by the number of offsets between patches."""
    rows = len(_tensor(foreign, _TABLE))
    side = (math.isqrt(max(rows - CLS_ENTRIES, 0)) + 1) // 2 * patch_size
    size = known.get('image_size', side)
    size = (size, size) if isinstance(size, int) else tuple(size)
    grid = [n // patch_size for n in size]
    if len(grid) != 2 or min(grid) < 1 or table_rows((grid[0], grid[1])) != rows:
        shape = ' x '.join(map(str, size)) if 'image_size' in known else 'a square'
        raise UserError(
            f'The model has relative positions of {rows} rows, which {shape} of patches of '
            f'{patch_size} x {patch_size} pixels does not have: give the --image_size it was '
            'trained with.'
        )
    return size


def _heads_from_shapes(foreign: Foreign) -> dict[str, int]:
    """Reads the heads from shapes, where a tensor has an axis of them.

    These are the Flax ViT's query, [D, heads, D / heads], and BEiT's table, [rows, heads].
    """
    if 'beit' in foreign.naming:
        table = _tensor(foreign, _TABLE)
        return {'heads': table.shape[1]} if table.ndim == 2 else {}
    rule = _rule(foreign, 'encoder/blocks/block_{i}/attention/qkv/kernel')
    first = foreign.tensors.get(rule.theirs[0].replace('{i}', '0'))
    return {} if first is None or first.ndim != 3 else {'heads': first.shape[1]}
