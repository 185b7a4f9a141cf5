"""What both sides of the golden numbers build for themselves: cases, weights, inputs, names.

NumPy alone, so that Hugging Face's ViTMAE in PyTorch (`make_vitmae.py`) and the tests start from
the same tensors without storing them. Tensors have PyTorch's shapes and the names of transformers
5; `to_tree` and `from_tree` go between these and the parameters of `mae_jax.models.mae.MAE`.
"""

import math
import zlib
from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """A model and a batch."""

    image_size: tuple[int, int]
    channels: int
    patch_size: int
    mask_ratio: float
    normalized: bool
    decoder_depth: int = 1
    batch_size: int = 3
    width: int = 12
    depth: int = 2
    heads: int = 3
    decoder_width: int = 8
    decoder_heads: int = 2
    norm_eps: float = 1e-6

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size

    @property
    def patch_dim(self) -> int:
        return self.patch_size**2 * self.channels


CASES = {
    'square_rgb_pixel': Case((16, 16), 3, 4, 0.75, normalized=False),
    'wide_rgb_normalized': Case((8, 24), 3, 4, 0.75, normalized=True),
    'tall_gray_normalized': Case((12, 8), 1, 2, 0.75, normalized=True, decoder_depth=2),
    'wide_gray_pixel': Case((4, 10), 1, 2, 0.5, normalized=False),
    'square_four_bands_normalized': Case((12, 12), 4, 4, 0.6, normalized=True),
}
NORM_EPS = Case((8, 8), 3, 4, 0.75, normalized=True, norm_eps=1e-2)
"""A square, as transformers takes it, whose norms add more than any library's default."""
TRAJECTORY = Case((8, 12), 3, 2, 0.75, normalized=True, batch_size=4)
TRAJECTORY_STEPS, TRAJECTORY_WARMUP = 50, 10
TRAJECTORY_LR, TRAJECTORY_WEIGHT_DECAY = 5e-3, 0.05


def normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers that a name stands for."""
    # RandomState's stream is frozen by NumPy's promise; Generator's is not.
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)


def positions(dim: int, grid: tuple[int, int]) -> np.ndarray:
    """The table of the MAE paper's code by its formula, a number at a time: [1, 1 + N, dim]."""
    table = [[0.0] * dim]
    quarter = dim // 4
    for row in range(grid[0]):
        for column in range(grid[1]):
            angles = [
                place / 10000 ** (i / quarter) for place in (column, row) for i in range(quarter)
            ]
            x, y = angles[:quarter], angles[quarter:]
            waves = [f(angle) for half in (x, y) for f in (math.sin, math.cos) for angle in half]
            table.append(waves)
    return np.array([table], np.float32)


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor but the position tables."""
    width, decoder_width = case.width, case.decoder_width
    named = {
        'vit.embeddings.cls_token': (1, 1, width),
        'vit.embeddings.patch_embeddings.projection.weight': (
            width,
            case.channels,
            case.patch_size,
            case.patch_size,
        ),
        'vit.embeddings.patch_embeddings.projection.bias': (width,),
        'decoder.mask_token': (1, 1, decoder_width),
    }

    def linear(name, fan_out, fan_in):
        named[f'{name}.weight'] = (fan_out, fan_in)
        named[f'{name}.bias'] = (fan_out,)

    def norm(name, dim):
        named[f'{name}.weight'] = named[f'{name}.bias'] = (dim,)

    blocks = [(f'vit.layers.{i}', width) for i in range(case.depth)]
    blocks += [(f'decoder.decoder_layers.{i}', decoder_width) for i in range(case.decoder_depth)]
    for block, dim in blocks:
        for projection in ('q_proj', 'k_proj', 'v_proj', 'o_proj'):
            linear(f'{block}.attention.{projection}', dim, dim)
        linear(f'{block}.mlp.fc1', 4 * dim, dim)
        linear(f'{block}.mlp.fc2', dim, 4 * dim)
        norm(f'{block}.layernorm_before', dim)
        norm(f'{block}.layernorm_after', dim)
    norm('vit.layernorm', width)
    linear('decoder.decoder_embed', decoder_width, width)
    norm('decoder.decoder_norm', decoder_width)
    linear('decoder.decoder_pred', case.patch_dim, decoder_width)
    return named


def weights(case: Case) -> dict[str, np.ndarray]:
    """Every tensor of the autoencoder, float32."""
    tables = {
        'vit.embeddings.position_embeddings': positions(case.width, case.grid),
        'decoder.decoder_pos_embed': positions(case.decoder_width, case.grid),
    }
    return tables | tensors_of(shapes(case))


def tensors_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """float32, none of them at a value that would hide a mistake, such as zero."""
    tensors = {}
    for name, shape in shapes.items():
        noise = normal(name, shape)
        if 'norm' in name and name.endswith('weight'):
            tensor = 1 + 0.2 * noise
        elif len(shape) in (2, 4):
            tensor = noise * math.prod(shape[1:]) ** -0.5
        else:
            tensor = 0.2 * noise
        tensors[name] = tensor.astype(np.float32)
    return tensors


def inputs(case: Case, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 [B, H, W, C] and noise float32 [B, N]."""
    height, width = case.image_size
    images = normal(f'images {seed}', (case.batch_size, height, width, case.channels))
    noise = np.random.RandomState(seed).uniform(size=(case.batch_size, math.prod(case.grid)))
    return (0.5 * images + 0.3).astype(np.float32), noise.astype(np.float32)


_OUTSIDE_BLOCKS = {
    'vit.embeddings.cls_token': 'encoder/cls_token',
    'vit.embeddings.position_embeddings': 'encoder/pos_embed',
    'vit.embeddings.patch_embeddings.projection.weight': 'encoder/patch_embed/kernel',
    'vit.embeddings.patch_embeddings.projection.bias': 'encoder/patch_embed/bias',
    'vit.layernorm.weight': 'encoder/norm/scale',
    'vit.layernorm.bias': 'encoder/norm/bias',
    'decoder.mask_token': 'decoder/mask_token',
    'decoder.decoder_pos_embed': 'decoder/pos_embed',
    'decoder.decoder_embed.weight': 'decoder/embed/kernel',
    'decoder.decoder_embed.bias': 'decoder/embed/bias',
    'decoder.decoder_norm.weight': 'decoder/norm/scale',
    'decoder.decoder_norm.bias': 'decoder/norm/bias',
    'decoder.decoder_pred.weight': 'decoder/head/kernel',
    'decoder.decoder_pred.bias': 'decoder/head/bias',
}
_IN_BLOCK = {
    'attention.o_proj': 'attention/proj',
    'mlp.fc1': 'mlp/fc1',
    'mlp.fc2': 'mlp/fc2',
    'layernorm_before': 'norm1',
    'layernorm_after': 'norm2',
}


def _paths(case: Case) -> dict[str, str]:
    """Name -> path in the tree, save for query, key and value, which lie in one tensor there."""
    paths = dict(_OUTSIDE_BLOCKS)
    for theirs, ours in _blocks(case):
        for their_part, part in _IN_BLOCK.items():
            scale = 'scale' if 'norm' in part else 'kernel'
            paths[f'{theirs}.{their_part}.weight'] = f'{ours}/{part}/{scale}'
            paths[f'{theirs}.{their_part}.bias'] = f'{ours}/{part}/bias'
    return paths


def _blocks(case: Case) -> list[tuple[str, str]]:
    encoder = [(f'vit.layers.{i}', f'encoder/blocks/block_{i}') for i in range(case.depth)]
    return encoder + [
        (f'decoder.decoder_layers.{i}', f'decoder/blocks/block_{i}')
        for i in range(case.decoder_depth)
    ]


def to_tree(case: Case, tensors: dict[str, np.ndarray]) -> dict:
    """Named tensors -> the nested parameters of our model."""
    flat = {}
    for name, path in _paths(case).items():
        tensor = tensors[name]
        if name.endswith('projection.weight'):  # [D, C, P, P] -> [P*P*C, D]
            flat[path] = tensor.transpose(2, 3, 1, 0).reshape(-1, case.width)
        else:
            flat[path] = tensor.T if path.endswith('kernel') else tensor
    for theirs, ours in _blocks(case):
        for kind, leaf in ('weight', 'kernel'), ('bias', 'bias'):
            parts = [tensors[f'{theirs}.attention.{p}_proj.{kind}'].T for p in 'qkv']
            flat[f'{ours}/attention/qkv/{leaf}'] = np.concatenate(parts, axis=-1)
    tree = {}
    for path, tensor in flat.items():
        *parents, leaf = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = tensor
    return tree


def from_tree(case: Case, tree: dict) -> dict[str, np.ndarray]:
    """The nested parameters (or gradients) of our model -> named tensors."""

    def at(path):
        node = tree
        for key in path.split('/'):
            node = node[key]
        return np.asarray(node)

    tensors = {}
    for name, path in _paths(case).items():
        tensor = at(path)
        if name.endswith('projection.weight'):  # [P*P*C, D] -> [D, C, P, P]
            cells = tensor.reshape(case.patch_size, case.patch_size, case.channels, -1)
            tensors[name] = cells.transpose(3, 2, 0, 1)
        else:
            tensors[name] = tensor.T if path.endswith('kernel') else tensor
    for theirs, ours in _blocks(case):
        for kind, leaf in ('weight', 'kernel'), ('bias', 'bias'):
            parts = np.split(at(f'{ours}/attention/qkv/{leaf}'), 3, axis=-1)
            for p, part in zip('qkv', parts, strict=True):
                tensors[f'{theirs}.attention.{p}_proj.{kind}'] = part.T
    return tensors


def decays(name: str) -> bool:
    """Whether a tensor is decayed: all but biases and norms; cls and mask token are decayed."""
    return not (name.endswith('.bias') or 'norm' in name)
