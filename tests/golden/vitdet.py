"""What both sides of the golden ViTDet build for themselves: sizes, weights, inputs, names.

NumPy alone, as in `vitmae.py`. Tensors have the names and shapes of transformers' VitDetBackbone;
`to_tree` makes the parameters of `mae_jax.models.vit.Encoder` of them.
"""

import numpy as np
from vitmae import normal, tensors_of

PATCH_SIZE, WIDTH, DEPTH, HEADS, WINDOW = 4, 24, 3, 3, 4
GLOBAL = (1,)
"""Blocks without windows. The last row and column of windows of the others is padded."""
PRETRAINED, GRID = (5, 5), (6, 6)
"""Grids of the absolute positions, and of the relative ones in blocks without windows."""
GRIDS = {'square': GRID, 'wide': (6, 9)}
"""Grids of the images."""


def shapes() -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    named = {
        'embeddings.position_embeddings': (1, 1 + PRETRAINED[0] * PRETRAINED[1], WIDTH),
        'embeddings.projection.weight': (WIDTH, 3, PATCH_SIZE, PATCH_SIZE),
        'embeddings.projection.bias': (WIDTH,),
    }
    for i in range(DEPTH):
        block, side = f'encoder.layer.{i}', GRID[0] if i in GLOBAL else WINDOW
        dense = {
            f'{block}.attention.qkv': (3 * WIDTH, WIDTH),
            f'{block}.attention.proj': (WIDTH, WIDTH),
            f'{block}.mlp.fc1': (4 * WIDTH, WIDTH),
            f'{block}.mlp.fc2': (WIDTH, 4 * WIDTH),
        }
        for name, shape in dense.items():
            named |= {f'{name}.weight': shape, f'{name}.bias': shape[:1]}
        for name in ('norm1', 'norm2'):
            named |= {f'{block}.{name}.weight': (WIDTH,), f'{block}.{name}.bias': (WIDTH,)}
        for axis in 'hw':
            named[f'{block}.attention.rel_pos_{axis}'] = (2 * side - 1, WIDTH // HEADS)
    return named


def weights() -> dict[str, np.ndarray]:
    """Every tensor, float32."""
    return tensors_of(shapes())


def images(case: str) -> np.ndarray:
    """float32 [B, H, W, 3]."""
    height, width = (side * PATCH_SIZE for side in GRIDS[case])
    return normal(f'images {case}', (2, height, width, 3)).astype(np.float32)


def to_tree(tensors: dict[str, np.ndarray]) -> dict:
    """Named tensors -> the nested parameters of our encoder, without the cls token's position."""
    tree = {}
    for name, tensor in tensors.items():
        path = name.replace('encoder.layer.', 'blocks.block_').removeprefix('embeddings.')
        path = path.replace('position_embeddings', 'pos_embed').replace('projection', 'patch_embed')
        *parents, leaf = path.split('.')
        if leaf == 'weight':
            leaf = 'scale' if 'norm' in parents[-1] else 'kernel'
        if tensor.ndim == 4:  # [D, C, P, P] -> [P*P*C, D]
            tensor = tensor.transpose(2, 3, 1, 0).reshape(-1, WIDTH)
        elif leaf == 'kernel':
            tensor = tensor.T
        elif leaf == 'pos_embed':
            tensor = tensor[:, 1:]
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = tensor
    return tree
