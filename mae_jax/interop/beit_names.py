"""Names of BEiT's tensors: those of its own code, which timm has too, and those of Hugging Face.

In pretraining all blocks share one table of relative positions, in fine-tuning each has its own; in
ours each always has. Tables that are shared are read into every block, as BEiT's own code does to
fine-tune, and written once where those of all blocks are equal.
"""

import re

import numpy as np

from mae_jax.errors import UserError
from mae_jax.interop.rules import CONV, LINEAR, QKV, Layout, Rule, Sizes, linear, norm, rule

TABLE = 'relative_position_bias_table'
"""Last component of the names of tables."""
INDEX = 'relative_position_index'
"""Last component of the names of a buffer that follows from the size."""
_BLOCK = 'encoder/blocks/block_{i}'


def _without_keys(bias: np.ndarray, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    query, key, value = np.split(bias, 3)
    if key.any():
        raise UserError("BEiT's keys have no bias, and this model's have: convert to 'mae_jax'.")
    return query, value


QV_BIAS = Layout(lambda q, v: np.concatenate([q, np.zeros_like(q), v]), _without_keys)
"""Two of [D] <-> one [3D], whose middle is zero."""


def _official(table: str) -> tuple[Rule, ...]:
    theirs = 'blocks.{i}'
    return (
        rule('encoder/cls_token', 'cls_token'),
        rule('encoder/pos_embed', 'pos_embed'),
        *linear('encoder/patch_embed', 'patch_embed.proj', CONV),
        *norm(f'{_BLOCK}/norm1', f'{theirs}.norm1'),
        rule(f'{_BLOCK}/attention/qkv/kernel', f'{theirs}.attn.qkv.weight', LINEAR),
        Rule(
            f'{_BLOCK}/attention/qkv/bias',
            (f'{theirs}.attn.q_bias', f'{theirs}.attn.v_bias'),
            QV_BIAS,
        ),
        rule(f'{_BLOCK}/attention/relative_table', table),
        *linear(f'{_BLOCK}/attention/proj', f'{theirs}.attn.proj'),
        rule(f'{_BLOCK}/attention_scale', f'{theirs}.gamma_1'),
        *norm(f'{_BLOCK}/norm2', f'{theirs}.norm2'),
        *linear(f'{_BLOCK}/mlp/fc1', f'{theirs}.mlp.fc1'),
        *linear(f'{_BLOCK}/mlp/fc2', f'{theirs}.mlp.fc2'),
        rule(f'{_BLOCK}/mlp_scale', f'{theirs}.gamma_2'),
        *norm('encoder/norm', 'norm'),
        *norm('fc_norm', 'fc_norm'),
        *linear('head', 'head'),
    )


def _hugging_face(table: str) -> tuple[Rule, ...]:
    theirs = 'beit.encoder.layer.{i}'
    attention = f'{theirs}.attention.attention'
    weights = tuple(f'{attention}.{layer}.weight' for layer in ('query', 'key', 'value'))
    biases = tuple(f'{attention}.{layer}.bias' for layer in ('query', 'value'))
    return (
        rule('encoder/cls_token', 'beit.embeddings.cls_token'),
        rule('encoder/pos_embed', 'beit.embeddings.position_embeddings'),
        *linear('encoder/patch_embed', 'beit.embeddings.patch_embeddings.projection', CONV),
        *norm(f'{_BLOCK}/norm1', f'{theirs}.layernorm_before'),
        Rule(f'{_BLOCK}/attention/qkv/kernel', weights, QKV),
        Rule(f'{_BLOCK}/attention/qkv/bias', biases, QV_BIAS),
        rule(f'{_BLOCK}/attention/relative_table', table),
        *linear(f'{_BLOCK}/attention/proj', f'{theirs}.attention.output.dense'),
        rule(f'{_BLOCK}/attention_scale', f'{theirs}.lambda_1'),
        *norm(f'{_BLOCK}/norm2', f'{theirs}.layernorm_after'),
        *linear(f'{_BLOCK}/mlp/fc1', f'{theirs}.intermediate.dense'),
        *linear(f'{_BLOCK}/mlp/fc2', f'{theirs}.output.dense'),
        rule(f'{_BLOCK}/mlp_scale', f'{theirs}.lambda_2'),
        *norm('encoder/norm', 'beit.layernorm'),
        *norm('fc_norm', 'beit.pooler.layernorm'),
        *linear('head', 'classifier'),
    )


SHARED = {
    'beit': 'rel_pos_bias.relative_position_bias_table',
    'huggingface_beit': 'beit.encoder.relative_position_bias.relative_position_bias_table',
}
"""Naming scheme -> name of the table that all blocks share, in the scheme of that name + '_shared'.
"""
_OWN = 'attention.attention.relative_position_bias.relative_position_bias_table'
NAME_MAPS = {
    'beit': _official('blocks.{i}.attn.relative_position_bias_table'),
    'beit_shared': _official(SHARED['beit']),
    'huggingface_beit': _hugging_face(f'beit.encoder.layer.{{i}}.{_OWN}'),
    'huggingface_beit_shared': _hugging_face(SHARED['huggingface_beit']),
}

_OTHER_HUGGING_FACE = (
    # Beside those of ViT: where transformers 5 has the tables, a model by itself, the norm of one
    # that was pretrained.
    (r'^vit\.', 'beit.'),
    (r'^(beit\.)?shared_position_bias\.', 'beit.encoder.relative_position_bias.'),
    (r'(\.layer\.\d+)\.relative_position_bias\.', rf'\1.{_OWN.rpartition(".")[0]}.'),
)


def is_beit(name: str) -> bool:
    """Returns whether only BEiT has a tensor of this name."""
    return name.endswith(TABLE)


def beit_name(name: str) -> str:
    """Converts a name that `hub_name` returned for a tensor of BEiT to the one on the hub."""
    for pattern, replacement in _OTHER_HUGGING_FACE:
        name = re.sub(pattern, replacement, name)
    return name
