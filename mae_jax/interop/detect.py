"""The config of a converted model: from shapes, from what the file states, from what is usual."""

import math
import re
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mae_jax.config.model import statistics
from mae_jax.errors import UserError
from mae_jax.interop.facts import check_facts
from mae_jax.interop.foreign import IMAGENET, Foreign
from mae_jax.interop.modules import some
from mae_jax.interop.name_maps import CONV, SPELLINGS, Rule
from mae_jax.models.vit import VARIANTS

HEADS = {sizes['width']: sizes['heads'] for sizes in VARIANTS.values()}
DECODER_HEADS = {512: 16}
"""Both by width."""
USUAL = {'mask_ratio': 0.75, 'target': 'normalized_pixel'}
"""Of the official checkpoints, which state neither."""


def describe(foreign: Foreign, given: dict[str, Any]) -> tuple[ConfigDict, list[str]]:
    """The config of a checkpoint, and which of its values were assumed.

    Args:
      foreign: the checkpoint.
      given: facts that the user knows better than the file.

    Raises:
      UserError: something essential is missing, or cannot be known from the file.
    """
    _check_names(foreign)
    known, assumed = _heads_of_shapes(foreign) | foreign.stated | given, []
    check_facts(known)

    def fact(name: str, usual: Any) -> Any:
        if name in known:
            return known[name]
        if usual is None:
            raise UserError(f'The file does not state {name}, nor is it usual: give --{name}.')
        assumed.append(f'{name}={usual}')
        return usual

    config = ConfigDict({'task': 'pretrain', 'init_from': None, 'model': _sizes(foreign)})
    model, kernel = config.model, _kernel(foreign)
    channels = kernel.shape[1] if _is_conv(foreign) else kernel.shape[2]
    config.image_size = _image_size(foreign, model.patch_size, known)
    model.heads = fact('heads', HEADS.get(model.width))
    rgb = IMAGENET if channels == 3 else dict(mean=None, std=None)
    config.dataset = dict(
        name=None,
        path=None,
        channels=channels,
        scale=float(known.get('scale', 255.0)),
        mean=tuple(fact('mean', rgb['mean'])),
        std=tuple(fact('std', rgb['std'])),
    )
    if _has(foreign, 'decoder/'):
        model.decoder_width = _raw(foreign, 'decoder/mask_token').shape[-1]
        model.decoder_depth = _depth(foreign, 'decoder')
        model.decoder_heads = fact('decoder_heads', DECODER_HEADS.get(model.decoder_width))
        config.mask = {'ratio': fact('mask_ratio', USUAL['mask_ratio']), 'strategy': 'random'}
        config.target = {'name': fact('target', USUAL['target'])}
    elif _has(foreign, 'head/'):
        config.task = 'classify'
        config.num_classes = _raw(foreign, 'head/bias').shape[0]
        model.pool = 'mean' if _has(foreign, 'fc_norm/') else 'cls'
        model.batch_norm = _has(foreign, 'batch_stats/')
        model.update(drop_path=0.0, head_std=2e-5)
    statistics(config)  # says so where there are not as many as channels
    return config, assumed


def _check_names(foreign: Foreign) -> None:
    """Names that no such model has come first: shapes would not fit for want of them."""
    theirs = {name for rule in SPELLINGS[foreign.spelling] for name in rule.theirs}
    unknown = sorted(
        name
        for name in foreign.tensors
        if name not in theirs
        and re.sub(r'(?<=[._])\d+(?=[./])', '{i}', name, count=1) not in theirs
    )
    if unknown:
        raise UserError(
            f'it is no model that is known here ({foreign.spelling}): {some(unknown)} '
            f'{"is" if len(unknown) == 1 else "are"} unknown.'
        )


def _is_conv(foreign: Foreign) -> bool:
    """Whether the patch kernel is [D, C, P, P]; otherwise it is [P, P, C, D]."""
    return _rule(foreign, 'encoder/patch_embed/kernel').layout is CONV


def _kernel(foreign: Foreign) -> np.ndarray:
    kernel = _raw(foreign, 'encoder/patch_embed/kernel')
    if kernel.ndim != 4 or 0 in kernel.shape:
        raise UserError(f'The patch embedding has shape {kernel.shape}: not a Vision Transformer.')
    return kernel


def _sizes(foreign: Foreign) -> dict[str, Any]:
    """config.model, as far as shapes tell."""
    shape = _kernel(foreign).shape
    width, patch_size = (shape[0], shape[2]) if _is_conv(foreign) else (shape[3], shape[0])
    # All sizes are given beside the variant, so that it is but a name.
    named = [name for name, sizes in VARIANTS.items() if sizes['width'] == width]
    return {
        'variant': named[0] if named else 'vit_base',
        'patch_size': patch_size,
        'width': width,
        'depth': _depth(foreign, 'encoder'),
        'dtype': 'float32',
        'remat': 'none',
        'scan': False,
    }


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
    name = _rule(foreign, f'{part}/blocks/block_{{i}}/norm1/scale').theirs[0]
    pattern = re.escape(name).replace(r'\{i\}', r'(\d{1,4})')
    found = [re.fullmatch(pattern, name) for name in foreign.tensors]
    if not any(found):
        raise UserError(f'{name.replace("{i}", "0")} is missing, and so are all blocks.')
    return max(int(match[1]) + 1 for match in found if match)


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
