"""What both sides of the golden BEiT build for themselves: sizes, weights, inputs, names.

NumPy alone, as in `vitmae.py`. Tensors have the names and shapes of BEiT's own code.
"""

from typing import NamedTuple

import numpy as np
from vitmae import normal, tensors_of

PATCH_SIZE, WIDTH, DEPTH, HEADS, CLASSES = 4, 24, 2, 3, 5


class Case(NamedTuple):
    """A model."""

    grid: tuple[int, int]
    shared: bool
    """Whether it was pretrained: the blocks share a table, and there is no classifier."""

    @property
    def image_size(self) -> tuple[int, int]:
        return self.grid[0] * PATCH_SIZE, self.grid[1] * PATCH_SIZE


CASES = {
    'fine_tuned': Case((4, 4), shared=False),
    'fine_tuned_wide': Case((3, 5), shared=False),
    'pretrained': Case((4, 4), shared=True),
}


def shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """Name -> shape."""
    named = {
        'cls_token': (1, 1, WIDTH),
        'patch_embed.proj.weight': (WIDTH, 3, PATCH_SIZE, PATCH_SIZE),
        'patch_embed.proj.bias': (WIDTH,),
    }
    table = ((2 * case.grid[0] - 1) * (2 * case.grid[1] - 1) + 3, HEADS)
    norms, dense = ['norm' if case.shared else 'fc_norm'], {}
    if case.shared:
        named['rel_pos_bias.relative_position_bias_table'] = table
    else:
        dense['head'] = (CLASSES, WIDTH)
    for block in (f'blocks.{i}' for i in range(DEPTH)):
        for name in ('gamma_1', 'gamma_2', 'attn.q_bias', 'attn.v_bias'):
            named[f'{block}.{name}'] = (WIDTH,)
        named[f'{block}.attn.qkv.weight'] = (3 * WIDTH, WIDTH)
        if not case.shared:
            named[f'{block}.attn.relative_position_bias_table'] = table
        dense[f'{block}.attn.proj'] = (WIDTH, WIDTH)
        dense[f'{block}.mlp.fc1'] = (4 * WIDTH, WIDTH)
        dense[f'{block}.mlp.fc2'] = (WIDTH, 4 * WIDTH)
        norms += [f'{block}.norm1', f'{block}.norm2']
    for name, shape in dense.items():
        named |= {f'{name}.weight': shape, f'{name}.bias': shape[:1]}
    for name in norms:
        named |= {f'{name}.weight': (WIDTH,), f'{name}.bias': (WIDTH,)}
    return named


def weights(case: Case) -> dict[str, np.ndarray]:
    """Every tensor, float32."""
    tensors = tensors_of(shapes(case))
    return {n: 1 + x if 'gamma' in n else x for n, x in tensors.items()}


def images(case: Case) -> np.ndarray:
    """float32 [B, H, W, 3]."""
    return normal(f'images {case.grid}', (2, *case.image_size, 3)).astype(np.float32)
