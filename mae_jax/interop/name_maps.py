"""Names of the tensors of other libraries: one table of rules for each naming scheme."""

import re
from collections.abc import Iterable

from mae_jax.interop import beit_names
from mae_jax.interop.rules import (
    CONV,
    PATCHES,
    POSITIONS_WITHOUT_CLS,
    PROJ_HEADS,
    QKV,
    QKV_HEADS,
    Rule,
    linear,
    norm,
    rule,
)


def official_block(ours: str, theirs: str) -> list[Rule]:
    """Makes the rules of a block with the names of timm, which detectron2 has too."""
    return [
        *norm(f'{ours}/norm1', f'{theirs}.norm1'),
        *linear(f'{ours}/attention/qkv', f'{theirs}.attn.qkv'),
        *linear(f'{ours}/attention/proj', f'{theirs}.attn.proj'),
        *norm(f'{ours}/norm2', f'{theirs}.norm2'),
        *linear(f'{ours}/mlp/fc1', f'{theirs}.mlp.fc1'),
        *linear(f'{ours}/mlp/fc2', f'{theirs}.mlp.fc2'),
    ]


OFFICIAL = (
    rule('encoder/cls_token', 'cls_token'),
    rule('encoder/pos_embed', 'pos_embed'),
    *linear('encoder/patch_embed', 'patch_embed.proj', CONV),
    *official_block('encoder/blocks/block_{i}', 'blocks.{i}'),
    *norm('encoder/norm', 'norm'),
    rule('decoder/mask_token', 'mask_token'),
    rule('decoder/pos_embed', 'decoder_pos_embed'),
    *linear('decoder/embed', 'decoder_embed'),
    *official_block('decoder/blocks/block_{i}', 'decoder_blocks.{i}'),
    *norm('decoder/norm', 'decoder_norm'),
    *linear('decoder/head', 'decoder_pred'),
    *norm('fc_norm', 'fc_norm'),
    *linear('head', 'head'),
)
"""The official MAE, timm, DeiT, MoCo v3 and DINO."""

OFFICIAL_PROBE = (
    *(r for r in OFFICIAL if not r.ours.startswith(('head/', 'decoder/', 'fc_norm/'))),
    rule('batch_stats/feature_norm/mean', 'head.0.running_mean'),
    rule('batch_stats/feature_norm/var', 'head.0.running_var'),
    *linear('head', 'head.1'),
)
"""The official linear probe: its head is a batch norm, then a linear layer."""


def _hugging_face_block(ours: str, theirs: str) -> list[Rule]:
    attention = f'{theirs}.attention.attention'
    qkv = [f'{attention}.{layer}' for layer in ('query', 'key', 'value')]
    return [
        *norm(f'{ours}/norm1', f'{theirs}.layernorm_before'),
        Rule(f'{ours}/attention/qkv/kernel', tuple(f'{layer}.weight' for layer in qkv), QKV),
        Rule(f'{ours}/attention/qkv/bias', tuple(f'{layer}.bias' for layer in qkv), QKV),
        *linear(f'{ours}/attention/proj', f'{theirs}.attention.output.dense'),
        *norm(f'{ours}/norm2', f'{theirs}.layernorm_after'),
        *linear(f'{ours}/mlp/fc1', f'{theirs}.intermediate.dense'),
        *linear(f'{ours}/mlp/fc2', f'{theirs}.output.dense'),
    ]


HUGGING_FACE = (
    rule('encoder/cls_token', 'vit.embeddings.cls_token'),
    rule('encoder/pos_embed', 'vit.embeddings.position_embeddings'),
    *linear('encoder/patch_embed', 'vit.embeddings.patch_embeddings.projection', CONV),
    *_hugging_face_block('encoder/blocks/block_{i}', 'vit.encoder.layer.{i}'),
    *norm('encoder/norm', 'vit.layernorm'),
    rule('decoder/mask_token', 'decoder.mask_token'),
    rule('decoder/pos_embed', 'decoder.decoder_pos_embed'),
    *linear('decoder/embed', 'decoder.decoder_embed'),
    *_hugging_face_block('decoder/blocks/block_{i}', 'decoder.decoder_layers.{i}'),
    *norm('decoder/norm', 'decoder.decoder_norm'),
    *linear('decoder/head', 'decoder.decoder_pred'),
    *linear('head', 'classifier'),
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
        rule('encoder/cls_token', 'cls'),
        rule('encoder/patch_embed/kernel', 'embedding/kernel', PATCHES),
        rule('encoder/patch_embed/bias', 'embedding/bias'),
        *norm(f'{ours}/norm1', f'{theirs}/LayerNorm_{norms[0]}', '/scale', '/bias'),
        Rule(f'{ours}/attention/qkv/kernel', tuple(f'{layer}/kernel' for layer in qkv), QKV_HEADS),
        Rule(f'{ours}/attention/qkv/bias', tuple(f'{layer}/bias' for layer in qkv), QKV_HEADS),
        rule(f'{ours}/attention/proj/kernel', f'{module}/out/kernel', PROJ_HEADS),
        rule(f'{ours}/attention/proj/bias', f'{module}/out/bias'),
        *norm(f'{ours}/norm2', f'{theirs}/LayerNorm_{norms[1]}', '/scale', '/bias'),
        *(
            rule(f'{ours}/mlp/fc{n + 1}/{leaf}', f'{theirs}/MlpBlock_{mlp}/Dense_{n}/{leaf}')
            for n in (0, 1)
            for leaf in ('kernel', 'bias')
        ),
        *norm('encoder/norm', 'Transformer/encoder_norm', '/scale', '/bias'),
        rule('head/kernel', 'head/kernel'),
        rule('head/bias', 'head/bias'),
    )


AUGREG = (
    *_flax_names((0, 2), 1, 3),
    rule('encoder/pos_embed', 'Transformer/posembed_input/pos_embedding'),
)
"""The `.npz` files of vision_transformer, including the AugReg ones."""

BIG_VISION = (
    *_flax_names((0, 1), 0, 0),
    rule('encoder/pos_embed', 'pos_embedding', POSITIONS_WITHOUT_CLS),
)
"""The `.npz` files of big_vision, where the cls token has no position."""

NAME_MAPS = {
    'official': OFFICIAL,
    'official_probe': OFFICIAL_PROBE,
    'huggingface': HUGGING_FACE,
    **beit_names.NAME_MAPS,
    'augreg': AUGREG,
    'big_vision': BIG_VISION,
}


def number_blocks(rules: Iterable[Rule], names: Iterable[str]) -> list[Rule]:
    """Returns the rules for our parameters of the given names, with `{i}` replaced by numbers.

    Rules without a parameter are left out.
    """
    patterns = {each.ours: each for each in rules}
    numbered = []
    for name in names:
        index = re.search(r'block_(\d+)/', name)
        pattern = patterns.get(re.sub(r'block_\d+/', 'block_{i}/', name))
        if pattern is not None:
            number = index[1] if index else ''
            theirs = tuple(each.replace('{i}', number) for each in pattern.theirs)
            numbered.append(Rule(name, theirs, pattern.layout))
    return numbered
