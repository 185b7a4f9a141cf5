"""Names and layouts of the tensors of other libraries: one table for each library.

A rule maps one of our parameters to the tensors of the other library that it is made of. Its layout
converts between them in both directions. A layout only moves numbers, so that both directions are
exact. `{i}` in a name stands for the number of a block.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from mae_jax.errors import UserError


class Sizes(NamedTuple):
    """Sizes that a layout needs beside the shape of a tensor."""

    patch_size: int
    heads: int


class Layout(NamedTuple):
    """Converts the tensors of another library to one of ours, and back."""

    to_ours: Callable[..., np.ndarray]
    to_theirs: Callable[[np.ndarray, Sizes], tuple[np.ndarray, ...]]


class Rule(NamedTuple):
    """The name of one of our parameters, those of the tensors it is made of, and the layout."""

    ours: str
    theirs: tuple[str, ...]
    layout: Layout


def _with_heads(kernel: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Splits the last axis by heads: [..., H*d] -> [..., H, d]."""
    return kernel.reshape(*kernel.shape[:-1], sizes.heads, -1)


def _without_cls(table: np.ndarray, sizes: Sizes) -> tuple[np.ndarray]:
    if table[:, 0].any():
        raise UserError(
            'big_vision has no position for the cls token, and this model learned one: convert it '
            "to 'augreg', which big_vision reads too."
        )
    return (table[:, 1:],)


SAME = Layout(lambda x: x, lambda x, sizes: (x,))
LINEAR = Layout(lambda x: x.T, lambda x, sizes: (x.T,))
"""[out, in] <-> [in, out]."""
CONV = Layout(
    lambda x: x.transpose(2, 3, 1, 0).reshape(-1, len(x)),
    lambda x, sizes: (
        x.reshape(sizes.patch_size, sizes.patch_size, -1, x.shape[-1]).transpose(3, 2, 0, 1),
    ),
)
"""[D, C, P, P] <-> [P*P*C, D]."""
PATCHES = Layout(
    lambda x: x.reshape(-1, x.shape[-1]),
    lambda x, sizes: (x.reshape(sizes.patch_size, sizes.patch_size, -1, x.shape[-1]),),
)
"""[P, P, C, D] <-> [P*P*C, D]."""
QKV = Layout(
    lambda *qkv: np.concatenate([x.T for x in qkv], axis=-1),
    lambda x, sizes: tuple(third.T for third in np.split(x, 3, axis=-1)),
)
"""Three of [out, in], or of [out] <-> one [in, 3*out], or [3*out]."""
QKV_HEADS = Layout(
    lambda *qkv: np.concatenate([x.reshape(*x.shape[:-2], -1) for x in qkv], axis=-1),
    lambda x, sizes: tuple(_with_heads(third, sizes) for third in np.split(x, 3, axis=-1)),
)
"""Three of [D, H, d], or of [H, d] <-> one [D, 3*H*d], or [3*H*d]."""
PROJ_HEADS = Layout(
    lambda x: x.reshape(-1, x.shape[-1]),
    lambda x, sizes: (x.reshape(sizes.heads, -1, x.shape[-1]),),
)
"""[H, d, D] <-> [H*d, D]."""
POSITIONS_WITHOUT_CLS = Layout(
    lambda x: np.concatenate([np.zeros_like(x[:, :1]), x], axis=1), _without_cls
)
"""[1, N, D] <-> [1, 1 + N, D]."""


def _rule(ours: str, theirs: str, layout: Layout = SAME) -> Rule:
    return Rule(ours, (theirs,), layout)


def _norm(ours: str, theirs: str, scale: str = '.weight', bias: str = '.bias') -> list[Rule]:
    return [_rule(f'{ours}/scale', theirs + scale), _rule(f'{ours}/bias', theirs + bias)]


def _linear(ours: str, theirs: str, layout: Layout = LINEAR) -> list[Rule]:
    return [
        _rule(f'{ours}/kernel', f'{theirs}.weight', layout),
        _rule(f'{ours}/bias', f'{theirs}.bias'),
    ]


def _official_block(ours: str, theirs: str) -> list[Rule]:
    return [
        *_norm(f'{ours}/norm1', f'{theirs}.norm1'),
        *_linear(f'{ours}/attention/qkv', f'{theirs}.attn.qkv'),
        *_linear(f'{ours}/attention/proj', f'{theirs}.attn.proj'),
        *_norm(f'{ours}/norm2', f'{theirs}.norm2'),
        *_linear(f'{ours}/mlp/fc1', f'{theirs}.mlp.fc1'),
        *_linear(f'{ours}/mlp/fc2', f'{theirs}.mlp.fc2'),
    ]


OFFICIAL = (
    _rule('encoder/cls_token', 'cls_token'),
    _rule('encoder/pos_embed', 'pos_embed'),
    *_linear('encoder/patch_embed', 'patch_embed.proj', CONV),
    *_official_block('encoder/blocks/block_{i}', 'blocks.{i}'),
    *_norm('encoder/norm', 'norm'),
    _rule('decoder/mask_token', 'mask_token'),
    _rule('decoder/pos_embed', 'decoder_pos_embed'),
    *_linear('decoder/embed', 'decoder_embed'),
    *_official_block('decoder/blocks/block_{i}', 'decoder_blocks.{i}'),
    *_norm('decoder/norm', 'decoder_norm'),
    *_linear('decoder/head', 'decoder_pred'),
    *_norm('fc_norm', 'fc_norm'),
    *_linear('head', 'head'),
)
"""The official MAE, timm, DeiT, MoCo v3 and DINO."""

OFFICIAL_PROBE = (
    *(rule for rule in OFFICIAL if not rule.ours.startswith(('head/', 'decoder/', 'fc_norm/'))),
    _rule('batch_stats/feature_norm/mean', 'head.0.running_mean'),
    _rule('batch_stats/feature_norm/var', 'head.0.running_var'),
    *_linear('head', 'head.1'),
)
"""The official linear probe: its head is a batch norm, then a linear layer."""


def _hugging_face_block(ours: str, theirs: str) -> list[Rule]:
    attention = f'{theirs}.attention.attention'
    qkv = [f'{attention}.{layer}' for layer in ('query', 'key', 'value')]
    return [
        *_norm(f'{ours}/norm1', f'{theirs}.layernorm_before'),
        Rule(f'{ours}/attention/qkv/kernel', tuple(f'{layer}.weight' for layer in qkv), QKV),
        Rule(f'{ours}/attention/qkv/bias', tuple(f'{layer}.bias' for layer in qkv), QKV),
        *_linear(f'{ours}/attention/proj', f'{theirs}.attention.output.dense'),
        *_norm(f'{ours}/norm2', f'{theirs}.layernorm_after'),
        *_linear(f'{ours}/mlp/fc1', f'{theirs}.intermediate.dense'),
        *_linear(f'{ours}/mlp/fc2', f'{theirs}.output.dense'),
    ]


HUGGING_FACE = (
    _rule('encoder/cls_token', 'vit.embeddings.cls_token'),
    _rule('encoder/pos_embed', 'vit.embeddings.position_embeddings'),
    *_linear('encoder/patch_embed', 'vit.embeddings.patch_embeddings.projection', CONV),
    *_hugging_face_block('encoder/blocks/block_{i}', 'vit.encoder.layer.{i}'),
    *_norm('encoder/norm', 'vit.layernorm'),
    _rule('decoder/mask_token', 'decoder.mask_token'),
    _rule('decoder/pos_embed', 'decoder.decoder_pos_embed'),
    *_linear('decoder/embed', 'decoder.decoder_embed'),
    *_hugging_face_block('decoder/blocks/block_{i}', 'decoder.decoder_layers.{i}'),
    *_norm('decoder/norm', 'decoder.decoder_norm'),
    *_linear('decoder/head', 'decoder.decoder_pred'),
    *_linear('head', 'classifier'),
)
"""Hugging Face's ViTMAE and ViT with the names on its hub: those of transformers 4."""

_OTHER_HUGGING_FACE = (
    # Other names for the same tensors in transformers 5 and releases before it.
    (r'(^|\.)layers\.(\d+)\.', r'\1encoder.layer.\2.'),
    (r'^decoder\.decoder_encoder\.layer\.', 'decoder.decoder_layers.'),
    (r'\.attention\.([qkv])_proj\.', lambda m: f'.attention.attention.{_QKV_NAMES[m[1]]}.'),
    (r'\.attention\.(query|key|value)\.', r'.attention.attention.\1.'),
    (r'\.attention\.attention\.attention\.', '.attention.attention.'),
    (r'\.attention\.o_proj\.', '.attention.output.dense.'),
    (r'\.mlp\.fc1\.', '.intermediate.dense.'),
    (r'\.mlp\.fc2\.', '.output.dense.'),
    (r'\.gamma$', '.weight'),
    (r'\.beta$', '.bias'),
    (r'^(embeddings|encoder|layernorm|pooler)\.', r'vit.\1.'),  # a ViTModel by itself
)
_QKV_NAMES = {'q': 'query', 'k': 'key', 'v': 'value'}


def hub_name(name: str) -> str:
    """Converts the name of a tensor in any release of transformers to the one on the hub."""
    for pattern, replacement in _OTHER_HUGGING_FACE:
        name = re.sub(pattern, replacement, name)
    return name


def _flax_names(norms: tuple[int, int], attention: int, mlp: int) -> tuple[Rule, ...]:
    """Makes the rules of the Flax ViT; releases number the modules of a block differently."""
    ours, theirs = 'encoder/blocks/block_{i}', 'Transformer/encoderblock_{i}'
    module = f'{theirs}/MultiHeadDotProductAttention_{attention}'
    qkv = [f'{module}/{layer}' for layer in ('query', 'key', 'value')]
    return (
        _rule('encoder/cls_token', 'cls'),
        _rule('encoder/patch_embed/kernel', 'embedding/kernel', PATCHES),
        _rule('encoder/patch_embed/bias', 'embedding/bias'),
        *_norm(f'{ours}/norm1', f'{theirs}/LayerNorm_{norms[0]}', '/scale', '/bias'),
        Rule(f'{ours}/attention/qkv/kernel', tuple(f'{layer}/kernel' for layer in qkv), QKV_HEADS),
        Rule(f'{ours}/attention/qkv/bias', tuple(f'{layer}/bias' for layer in qkv), QKV_HEADS),
        _rule(f'{ours}/attention/proj/kernel', f'{module}/out/kernel', PROJ_HEADS),
        _rule(f'{ours}/attention/proj/bias', f'{module}/out/bias'),
        *_norm(f'{ours}/norm2', f'{theirs}/LayerNorm_{norms[1]}', '/scale', '/bias'),
        *(
            _rule(f'{ours}/mlp/fc{n + 1}/{leaf}', f'{theirs}/MlpBlock_{mlp}/Dense_{n}/{leaf}')
            for n in (0, 1)
            for leaf in ('kernel', 'bias')
        ),
        *_norm('encoder/norm', 'Transformer/encoder_norm', '/scale', '/bias'),
        _rule('head/kernel', 'head/kernel'),
        _rule('head/bias', 'head/bias'),
    )


AUGREG = (
    *_flax_names((0, 2), 1, 3),
    _rule('encoder/pos_embed', 'Transformer/posembed_input/pos_embedding'),
)
"""The `.npz` files of vision_transformer, including the AugReg ones."""

BIG_VISION = (
    *_flax_names((0, 1), 0, 0),
    _rule('encoder/pos_embed', 'pos_embedding', POSITIONS_WITHOUT_CLS),
)
"""The `.npz` files of big_vision, where the cls token has no position."""

NAME_MAPS = {
    'official': OFFICIAL,
    'official_probe': OFFICIAL_PROBE,
    'huggingface': HUGGING_FACE,
    'augreg': AUGREG,
    'big_vision': BIG_VISION,
}


def number_blocks(rules: Iterable[Rule], names: Iterable[str]) -> list[Rule]:
    """Returns the rules for our parameters of the given names, with `{i}` replaced by numbers.

    Rules without a parameter are left out.
    """
    patterns = {rule.ours: rule for rule in rules}
    numbered = []
    for name in names:
        index = re.search(r'block_(\d+)/', name)
        rule = patterns.get(re.sub(r'block_\d+/', 'block_{i}/', name))
        if rule is not None:
            number = index[1] if index else ''
            theirs = tuple(pattern.replace('{i}', number) for pattern in rule.theirs)
            numbered.append(Rule(name, theirs, rule.layout))
    return numbered
