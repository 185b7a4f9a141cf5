"""What both sides of upernet.npz build for themselves: sizes, weights, inputs, names.

NumPy alone, as in `vitmae.py`. Tensors have the shapes and names of transformers' UperNet over a
BeitBackbone; `to_tree` makes the variables of a `Segmenter` of them.
"""

import re
from typing import NamedTuple

import numpy as np
from vitmae import normal, tensors_of


class Case(NamedTuple):
    """A model; its pyramid's smallest map has sides that no number of bins divides."""

    side: int = 40
    patch_size: int = 4
    width: int = 12
    depth: int = 4
    heads: int = 3
    taps: tuple[int, ...] = (0, 1, 2, 3)
    head_width: int = 10
    auxiliary_width: int = 6
    classes: int = 5

    @property
    def grid(self) -> int:
        return self.side // self.patch_size


SMALL = Case()
BASE = Case(512, 16, 768, 12, 12, (3, 5, 7, 11), 768, 256, 150)
LARGE = Case(512, 16, 1024, 24, 16, (7, 11, 15, 23), 1024, 256, 150)
STRIDE = 3
"""Every third pixel of the logits is stored."""
GRADIENTS = (
    'backbone.fpn.fpn1.conv_transpose1.weight',
    'decode_head.psp_modules.3.1.conv.weight',
    'decode_head.fpn_convs.0.conv.weight',
    'auxiliary_head.convs.0.batch_norm.weight',
)
"""Parameters whose gradients are stored."""
IGNORED = 255


def weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Every tensor, float32; variances are positive."""
    tensors = tensors_of(shapes)
    for name, tensor in tensors.items():
        if name.endswith('running_var'):
            tensors[name] = np.exp(tensor)
    return tensors


def images(case: Case, count: int = 2) -> np.ndarray:
    """float32 [B, H, W, 3]."""
    return normal('images', (count, case.side, case.side, 3)).astype(np.float32)


def maps(case: Case, count: int = 2) -> list[np.ndarray]:
    """What the taps of an encoder may return: four of float32 [B, h, w, D]."""
    shape = (count, case.grid, case.grid, case.width)
    return [normal(f'map {number}', shape).astype(np.float32) for number in range(4)]


def labels(case: Case, count: int = 2) -> np.ndarray:
    """int64 [B, H, W], a third of them ignored."""
    drawn = np.random.RandomState(0).randint(0, case.classes * 3 // 2, (count,) + (case.side,) * 2)
    return np.where(drawn < case.classes, drawn, IGNORED)


MODULES = {
    r'backbone\.fpn\.fpn1\.conv_transpose(\d)': r'head/pyramid/quadruple_\1',
    r'backbone\.fpn\.fpn1\.normalization': r'head/pyramid/quadruple_norm',
    r'backbone\.fpn\.fpn2': r'head/pyramid/double',
    r'decode_head\.psp_modules\.0\.1\.(\w+)': r'head/pooling_1/\1',
    r'decode_head\.psp_modules\.1\.1\.(\w+)': r'head/pooling_2/\1',
    r'decode_head\.psp_modules\.2\.1\.(\w+)': r'head/pooling_3/\1',
    r'decode_head\.psp_modules\.3\.1\.(\w+)': r'head/pooling_6/\1',
    r'decode_head\.lateral_convs\.(\d)\.(\w+)': r'head/lateral_\1/\2',
    r'decode_head\.fpn_convs\.(\d)\.(\w+)': r'head/fpn_\1/\2',
    r'decode_head\.(bottleneck|fpn_bottleneck)\.(\w+)': r'head/\1/\2',
    r'decode_head\.classifier': r'head/classifier',
    r'auxiliary_head\.convs\.0\.(\w+)': r'auxiliary/conv_0/\1',
    r'auxiliary_head\.classifier': r'auxiliary/classifier',
    r'backbone\.beit\.embeddings\.patch_embeddings\.projection': r'encoder/patch_embed',
    r'backbone\.beit\.layers\.(\d+)\.layernorm_before': r'encoder/blocks/block_\1/norm1',
    r'backbone\.beit\.layers\.(\d+)\.layernorm_after': r'encoder/blocks/block_\1/norm2',
    r'backbone\.beit\.layers\.(\d+)\.attention\.o_proj': r'encoder/blocks/block_\1/attention/proj',
    r'backbone\.beit\.layers\.(\d+)\.mlp\.(\w+)': r'encoder/blocks/block_\1/mlp/\2',
}
"""Names of modules -> ours."""
PARAMETERS = {
    r'backbone\.beit\.embeddings\.cls_token': r'encoder/cls_token',
    r'backbone\.beit\.layers\.(\d+)\.lambda_1': r'encoder/blocks/block_\1/attention_scale',
    r'backbone\.beit\.layers\.(\d+)\.lambda_2': r'encoder/blocks/block_\1/mlp_scale',
    r'backbone\.beit\.layers\.(\d+)\.relative_position_bias\.relative_position_bias_table': (
        r'encoder/blocks/block_\1/attention/relative_table'
    ),
}
"""Names of parameters that are no module's -> ours."""
PROJECTION = re.compile(r'backbone\.beit\.layers\.(\d+)\.attention\.([qkv])_proj\.(\w+)')
LEAVES = {'bias': 'bias', 'running_mean': 'mean', 'running_var': 'var'}


def to_flat(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Named tensors -> ours by 'params/head/...' or 'batch_stats/...'; fused query, key, value."""
    flat, projections = {}, {}
    for name, tensor in tensors.items():
        if match := PROJECTION.fullmatch(name):
            projections[match[1], match[2], match[3]] = tensor
            continue
        path, tensor = _ours(name, tensor)
        flat[path] = tensor
    for number in {number for number, *_ in projections}:
        ours = f'params/encoder/blocks/block_{number}/attention/qkv'
        kernels = [projections[number, which, 'weight'].T for which in 'qkv']
        bias = projections[number, 'q', 'bias']
        biases = [bias, np.zeros_like(bias), projections[number, 'v', 'bias']]
        flat[f'{ours}/kernel'] = np.concatenate(kernels, axis=1)
        flat[f'{ours}/bias'] = np.concatenate(biases)
    return flat


def _ours(name: str, tensor: np.ndarray) -> tuple[str, np.ndarray]:
    for theirs, ours in PARAMETERS.items():
        if re.fullmatch(theirs, name):
            return f'params/{re.sub(theirs, ours, name)}', tensor
    module, _, leaf = name.rpartition('.')
    (path,) = (re.sub(a, b, module) for a, b in MODULES.items() if re.fullmatch(a, module))
    path = path.replace('batch_norm', 'norm')
    collection = 'batch_stats' if leaf.startswith('running') else 'params'
    if leaf != 'weight':
        return f'{collection}/{path}/{LEAVES[leaf]}', tensor
    if tensor.ndim == 1:
        return f'params/{path}/scale', tensor
    return f'params/{path}/kernel', _kernel(path, tensor)


def _kernel(path: str, tensor: np.ndarray) -> np.ndarray:
    if path == 'encoder/patch_embed':  # [D, C, P, P] -> [P*P*C, D]
        return tensor.transpose(2, 3, 1, 0).reshape(-1, len(tensor))
    if '/pyramid/' in path:  # a transposed convolution's, [in, out, 2, 2] -> [in, 2, 2, out]
        return tensor.transpose(0, 2, 3, 1)
    if path.endswith('classifier'):  # [out, in, 1, 1] -> [in, out]
        return tensor[..., 0, 0].T
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def to_tree(tensors: dict[str, np.ndarray]) -> dict:
    """Named tensors -> the nested variables of our model."""
    tree = {}
    for path, tensor in to_flat(tensors).items():
        *parents, leaf = path.split('/')
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = tensor
    return tree
