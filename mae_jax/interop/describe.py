"""The config of a converted model: from shapes, from what the file states, from what is usual.

What is stated or given has these names: heads, decoder_heads, image_size, mean, std, mask_ratio,
target.
"""

import math
import re
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mae_jax.errors import UserError
from mae_jax.interop.foreign import IMAGENET, Foreign
from mae_jax.interop.spellings import CONV, SPELLINGS, Rule
from mae_jax.models.vit import VARIANTS

HEADS = {sizes['width']: sizes['heads'] for sizes in VARIANTS.values()}
DECODER_HEADS = {512: 16}
USUAL = {'mask_ratio': 0.75, 'target': 'normalized_pixel'}
"""Of the official checkpoints, which state neither."""


def describe(foreign: Foreign, given: dict[str, Any]) -> tuple[ConfigDict, list[str]]:
    """The config of a checkpoint, and which of its values were assumed.

    Args:
      foreign: the checkpoint.
      given: by the user; comes before what the file states.

    Raises:
      UserError: something essential is missing, or cannot be known from the file.
    """
    known, assumed = _heads_of_shapes(foreign) | foreign.stated | given, []
    for name, value in known.items():
        if not _is_sensible(name, value):
            raise UserError(f'{name}={value!r} cannot be: give --{name}.')

    def fact(name: str, usual: Any) -> Any:
        if name in known:
            return known[name]
        if usual is None:
            raise UserError(f'The file does not state {name}, nor is it usual: give --{name}.')
        assumed.append(f'{name}={usual}')
        return usual

    kernel = _raw(foreign, 'encoder/patch_embed/kernel')
    if kernel.ndim != 4 or 0 in kernel.shape:
        raise UserError(f'The patch embedding has shape {kernel.shape}: not a Vision Transformer.')
    conv = _rule(foreign, 'encoder/patch_embed/kernel').layout is CONV
    width, channels, patch_size = kernel.shape[:3] if conv else kernel.shape[:0:-1]
    rgb = IMAGENET if channels == 3 else dict(mean=None, std=None)
    config = ConfigDict(
        {
            'task': 'pretrain',
            'init_from': None,
            'image_size': _image_size(foreign, patch_size, known),
            'model': {
                'variant': _variant(width),
                'patch_size': patch_size,
                'width': width,
                'depth': _depth(foreign, 'encoder'),
                'heads': fact('heads', HEADS.get(width)),
                'dtype': 'float32',
                'remat': 'none',
                'scan': False,
            },
            'dataset': {
                'name': None,
                'path': None,
                'channels': channels,
                'scale': 255.0,
                'mean': tuple(fact('mean', rgb['mean'])),
                'std': tuple(fact('std', rgb['std'])),
            },
        },
        convert_dict=True,
    )
    if _has(foreign, 'decoder/'):
        decoder_width = _raw(foreign, 'decoder/mask_token').shape[-1]
        config.model.decoder_width = decoder_width
        config.model.decoder_depth = _depth(foreign, 'decoder')
        config.model.decoder_heads = fact('decoder_heads', DECODER_HEADS.get(decoder_width))
        config.mask = {'ratio': fact('mask_ratio', USUAL['mask_ratio']), 'strategy': 'random'}
        config.target = {'name': fact('target', USUAL['target'])}
    elif _has(foreign, 'head/'):
        config.task = 'classify'
        config.num_classes = _raw(foreign, 'head/bias').shape[0]
        config.model.pool = 'mean' if _has(foreign, 'fc_norm/') else 'cls'
        config.model.batch_norm = _has(foreign, 'batch_stats/')
        config.model.update(drop_path=0.0, head_std=2e-5)
    return config, assumed


def _is_sensible(name: str, value: Any) -> bool:
    """Whether a value that a file states is at all of the right type."""
    if name == 'target':
        return isinstance(value, str)
    several = isinstance(value, list | tuple)
    types = int | float if name in ('mean', 'std', 'mask_ratio') else int
    numbers = value if several else [value]
    return (several or name not in ('mean', 'std')) and all(
        isinstance(number, types) and not isinstance(number, bool) for number in numbers
    )


def _rule(foreign: Foreign, ours: str) -> Rule:
    return next(rule for rule in SPELLINGS[foreign.spelling] if rule.ours == ours)


def _raw(foreign: Foreign, ours: str) -> np.ndarray:
    """The tensor that stands there for one of our parameters."""
    name = _rule(foreign, ours).theirs[0]
    if name not in foreign.tensors or not foreign.tensors[name].ndim:
        raise UserError(
            f'{name} is missing: this is not a whole Vision Transformer with cls token.'
        )
    return foreign.tensors[name]


def _has(foreign: Foreign, prefix: str) -> bool:
    """Whether any tensor stands for one of our parameters of this prefix."""
    return any(
        name.split('{i}')[0] in foreign.tensors
        for rule in SPELLINGS[foreign.spelling]
        if rule.ours.startswith(prefix)
        for name in rule.theirs
    )


def _depth(foreign: Foreign, part: str) -> int:
    """Blocks are counted from 0 without a gap; one that is missing is found out later."""
    pattern = re.escape(_rule(foreign, f'{part}/blocks/block_{{i}}/norm1/scale').theirs[0])
    found = [re.fullmatch(pattern.replace(r'\{i\}', r'(\d{1,4})'), n) for n in foreign.tensors]
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _image_size(foreign: Foreign, patch_size: int, known: dict[str, Any]) -> tuple[int, int]:
    """By the table of positions: a square, unless another size is stated."""
    rule = _rule(foreign, 'encoder/pos_embed')
    table = _raw(foreign, rule.ours)
    patches = (rule.layout.to_ours(table).shape[1] if table.ndim == 3 else 0) - 1
    side = math.isqrt(max(patches, 0)) * patch_size
    size = known.get('image_size', side)
    size = (size, size) if isinstance(size, int) else tuple(size)
    if patches < 1 or len(size) != 2 or math.prod(n // patch_size for n in size) != patches:
        told = ' x '.join(map(str, size)) if 'image_size' in known else 'a square'
        raise UserError(
            f'The model has {patches} positions of patches of {patch_size} x {patch_size} pixels, '
            f'which {told} does not have: give --image_size.'
        )
    return size


def _heads_of_shapes(foreign: Foreign) -> dict[str, int]:
    """The Flax ViT's query is [D, heads, D / heads]; elsewhere no shape tells."""
    rule = _rule(foreign, 'encoder/blocks/block_{i}/attention/qkv/kernel')
    first = foreign.tensors.get(rule.theirs[0].replace('{i}', '0'))
    return {} if first is None or first.ndim != 3 else {'heads': first.shape[1]}


def _variant(width: int) -> str:
    """The one of that width; depth and heads are given beside it, so that any would do."""
    return next((name for name, sizes in VARIANTS.items() if sizes['width'] == width), 'vit_base')
