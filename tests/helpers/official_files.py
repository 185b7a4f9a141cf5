"""Golden autoencoders as safetensors files with the official names, which need no PyTorch."""

from pathlib import Path

import numpy as np
import safetensors.numpy
import vitmae

CASE = vitmae.Case((8, 24), 3, 4, 0.75, normalized=True)
"""A rectangle of 2 x 6 patches."""
SQUARE = vitmae.Case((8, 8), 3, 4, 0.75, normalized=True)
OPTIONS = ('--heads', 3, '--decoder_heads', 2, '--image_size', 8, 24, '--no_run')
"""Options of `mae-jax convert` for the file of `CASE`."""
SQUARE_OPTIONS = ('--heads', 3, '--decoder_heads', 2, '--no_run')
"""Options for the file of `SQUARE`."""

NAMES = (
    ('vit.embeddings.cls_token', 'cls_token'),
    ('vit.embeddings.position_embeddings', 'pos_embed'),
    ('vit.embeddings.patch_embeddings.projection', 'patch_embed.proj'),
    ('vit.layernorm', 'norm'),
    ('vit.layers', 'blocks'),
    ('decoder.mask_token', 'mask_token'),
    ('decoder.decoder_layers', 'decoder_blocks'),
    ('decoder.decoder_', 'decoder_'),
    ('attention.o_proj', 'attn.proj'),
    ('layernorm_before', 'norm1'),
    ('layernorm_after', 'norm2'),
)
"""Name in the golden tree -> official name."""


def official_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Renames golden tensors to the official names, independently of the package."""
    official = {}
    for name, tensor in tensors.items():
        for golden, other in NAMES:
            name = name.replace(golden, other)
        official[name] = tensor
    for name in [name for name in official if 'attention.q_proj' in name]:
        qkv = [official.pop(name.replace('q_proj', f'{p}_proj')) for p in 'qkv']
        official[name.replace('attention.q_proj', 'attn.qkv')] = np.concatenate(qkv)
    return official


def save_official(path: Path, case: vitmae.Case) -> tuple[Path, dict[str, np.ndarray]]:
    """Writes the autoencoder of a case; returns (path, tensors)."""
    tensors = official_names(vitmae.weights(case))
    safetensors.numpy.save_file(tensors, path, {'format': 'pt'})
    return path, tensors
