"""What both sides of the golden ViT build for themselves: weights, inputs, names.

NumPy alone, as in `vitmae.py`. Tensors have the names and shapes of timm's VisionTransformer;
`to_tree` makes the parameters of `mae_jax.models.classifier.Classifier` of them.
"""

import numpy as np
from vitmae import normal, tensors_of

PATCH_SIZE, WIDTH, DEPTH, HEADS, CLASSES = 16, 48, 12, 3, 10
GRID, RESIZED_GRID = 14, 18
BATCH_SIZE = 3
DROP_PATH = 0.4
BATCHES = (5, 7, 3, 6)
"""Sizes of the batches that batch normalisation is given, one after the other."""


def shapes(pool: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape; the last norm is `fc_norm` under mean pooling, `norm` under cls pooling."""
    named = {
        'cls_token': (1, 1, WIDTH),
        'pos_embed': (1, 1 + GRID**2, WIDTH),
        'patch_embed.proj.weight': (WIDTH, 3, PATCH_SIZE, PATCH_SIZE),
        'patch_embed.proj.bias': (WIDTH,),
    }
    dense = {'head': (CLASSES, WIDTH)}
    norms = ['fc_norm' if pool == 'mean' else 'norm']
    for block in (f'blocks.{i}' for i in range(DEPTH)):
        dense[f'{block}.attn.qkv'] = (3 * WIDTH, WIDTH)
        dense[f'{block}.attn.proj'] = (WIDTH, WIDTH)
        dense[f'{block}.mlp.fc1'] = (4 * WIDTH, WIDTH)
        dense[f'{block}.mlp.fc2'] = (WIDTH, 4 * WIDTH)
        norms += [f'{block}.norm1', f'{block}.norm2']
    for name, shape in dense.items():
        named |= {f'{name}.weight': shape, f'{name}.bias': shape[:1]}
    for name in norms:
        named |= {f'{name}.weight': (WIDTH,), f'{name}.bias': (WIDTH,)}
    return named


def weights(pool: str) -> dict[str, np.ndarray]:
    """Every tensor, float32."""
    return tensors_of(shapes(pool))


def images(grid: int) -> np.ndarray:
    """float32 [B, H, W, 3]."""
    size = grid * PATCH_SIZE
    return normal(f'images {size}', (BATCH_SIZE, size, size, 3)).astype(np.float32)


def path_noise() -> np.ndarray:
    """float32 [B, depth, 2] in [0, 1); a branch is dropped where it is below the block's rate."""
    return np.random.RandomState(0).uniform(size=(BATCH_SIZE, DEPTH, 2)).astype(np.float32)


def feature_batches() -> list[np.ndarray]:
    """float32 [B, D], with another mean and deviation in every dimension."""
    mean, deviation = 1 + np.arange(WIDTH) / WIDTH, np.linspace(0.01, 3, WIDTH)
    drawn = [normal(f'features {i}', (size, WIDTH)) for i, size in enumerate(BATCHES)]
    return [(mean + deviation * x).astype(np.float32) for x in drawn]


def to_tree(tensors: dict[str, np.ndarray]) -> dict:
    """Named tensors -> the nested parameters of our classifier."""
    tree = {}
    for name, tensor in tensors.items():
        path = name.replace('attn', 'attention').replace('blocks.', 'blocks.block_')
        *parents, leaf = path.replace('patch_embed.proj', 'patch_embed').split('.')
        if leaf == 'weight':
            leaf = 'scale' if 'norm' in parents[-1] else 'kernel'
        if tensor.ndim == 4:  # [D, C, P, P] -> [P*P*C, D]
            tensor = tensor.transpose(2, 3, 1, 0).reshape(-1, WIDTH)
        elif leaf == 'kernel':
            tensor = tensor.T
        top = parents and parents[0] in ('head', 'fc_norm')
        node = tree if top else tree.setdefault('encoder', {})
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = tensor
    return tree
