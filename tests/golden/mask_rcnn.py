"""What both sides of mask_rcnn.npz build for themselves: sizes, weights, inputs, names.

NumPy alone, as in `vitmae.py`. Tensors of the pyramid and the heads have the names and shapes of
detectron2's Mask R-CNN with ViTDet's pyramid; `to_tree` makes the parameters of a `Detector` of
them, `vitdet.to_tree` those of its encoder.
"""

import functools
import re
from pathlib import Path

import numpy as np
import vitdet
from vitmae import normal, tensors_of

CHANNELS, CLASSES, DENSE, WIDTH = 8, 3, 12, vitdet.WIDTH
BOX_SIZE, MASK_SIZE, SHAPES = 3, 4, 3
THRESHOLDS = (0.0, 0.1, 0.3, 0.45, 0.5, 0.7, 1.0)
"""Of non-maximum suppression."""
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
ROI_CASES = {'boxes': (0.25, 7), 'masks': (0.25, 14), 'pixels': (1.0, 3)}
"""Scale and size of RoIAlign."""
MAP = (2, 9, 13, 5)
ANCHORS = (((32.0, 0.5), (5, 7), 4), ((8.0, 0.25), (3, 2), 16))
"""Size and first ratio of the anchors of two maps, their grids and strides."""
RATIOS = (0.5, 1.0, 2.0)


def random(name: str) -> np.random.RandomState:
    return np.random.RandomState(sum(map(ord, name)))


def roi_boxes() -> np.ndarray:
    """float32 [2, 9, 4] in pixels of a map of 9 x 13 cells of 4 pixels: also long ones, some that
    reach far beyond the map, and one without an area."""
    drawn = random('rois')
    corners = drawn.uniform(-12, 48, (2, 9, 2))
    boxes = np.concatenate([corners, corners + drawn.uniform(0.5, 40, (2, 9, 2))], axis=-1)
    boxes[0, 0], boxes[0, 1], boxes[0, 2] = (0, 0, 52, 36), (3, 10, 51, 11), (20, 20, 20, 20)
    boxes[1, 0], boxes[1, 1] = (-30, -30, 90, 90), (51, 35, 60, 44)
    return boxes.astype(np.float32)


def level_boxes() -> np.ndarray:
    """float32 [200, 4], of areas from nearly none to that of a whole image."""
    drawn = random('levels')
    sides = np.exp(drawn.uniform(0, 7, (200, 2)))
    return np.concatenate([np.zeros((200, 2)), sides], axis=1).astype(np.float32)


def crowded() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [80, 4] in a few clusters, scores [80] with equal ones, and groups [80]."""
    drawn = random('crowd')
    centres = drawn.uniform(20, 80, (8, 2))[drawn.randint(0, 8, 80)] + drawn.normal(0, 4, (80, 2))
    sides = drawn.uniform(8, 30, (80, 2))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    boxes[10] = boxes[11]
    scores = drawn.uniform(size=80)
    scores[20] = scores[21]
    return boxes.astype(np.float32), scores.astype(np.float32), drawn.randint(0, 3, 80)


def pairs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes and references [50, 4], and deltas [50, 4], some too large to decode."""
    drawn = random('pairs')
    corners = drawn.uniform(0, 100, (2, 50, 2))
    boxes = np.concatenate([corners, corners + drawn.uniform(1, 80, (2, 50, 2))], axis=-1)
    return *boxes.astype(np.float32), drawn.normal(0, 12, (50, 4)).astype(np.float32)


def matched() -> tuple[np.ndarray, np.ndarray]:
    """Boxes of the truth [6, 4] and candidates [300, 4] on a grid, where overlaps are often equal.

    One box overlaps no candidate enough, one is overlapped most by several alike.
    """
    drawn = random('matched')
    corners = drawn.randint(0, 24, (300, 2)) * 4
    sides = drawn.randint(1, 6, (300, 2)) * 8
    candidates = np.concatenate([corners, corners + sides], axis=1)
    truth = candidates[drawn.choice(300, 4)] + drawn.randint(-1, 2, (4, 4)) * 4
    truth = np.concatenate([truth, [[50, 50, 53, 90], [0, 0, 128, 128]]])
    return truth.astype(np.float32), candidates.astype(np.float32)


def shapes() -> dict[str, tuple[int, ...]]:
    """Name -> shape of pyramid and heads."""
    named = {}

    def module(name: str, *shape: int, bias: bool | int = True, norm: bool | int = False) -> None:
        named[f'{name}.weight'] = shape
        if bias:
            named[f'{name}.bias'] = (shape[0] if bias is True else bias,)
        if norm:
            named.update({f'{name}.norm.{leaf}': shape[:1] for leaf in ('weight', 'bias')})

    half, quarter = WIDTH // 2, WIDTH // 4
    levels = {2: (quarter, 4), 3: (half, 1), 4: (WIDTH, 0), 5: (WIDTH, 1)}
    for level, (width, first) in levels.items():
        prefix = f'backbone.simfp_{level}'
        if level < 4:
            module(f'{prefix}.0', WIDTH, half, 2, 2, bias=half)
        if level == 2:
            module(f'{prefix}.1', half)
            module(f'{prefix}.3', half, quarter, 2, 2, bias=quarter)
        module(f'{prefix}.{first}', CHANNELS, width, 1, 1, bias=False, norm=True)
        module(f'{prefix}.{first + 1}', CHANNELS, CHANNELS, 3, 3, bias=False, norm=True)
    rpn, heads = 'proposal_generator.rpn_head', 'roi_heads'
    for number in range(2):
        module(f'{rpn}.conv.conv{number}', CHANNELS, CHANNELS, 3, 3)
    module(f'{rpn}.objectness_logits', SHAPES, CHANNELS, 1, 1)
    module(f'{rpn}.anchor_deltas', 4 * SHAPES, CHANNELS, 1, 1)
    for number in range(1, 5):
        convolution = dict(bias=False, norm=True)
        module(f'{heads}.box_head.conv{number}', CHANNELS, CHANNELS, 3, 3, **convolution)
        module(f'{heads}.mask_head.mask_fcn{number}', CHANNELS, CHANNELS, 3, 3, **convolution)
    module(f'{heads}.box_head.fc1', DENSE, CHANNELS * BOX_SIZE**2)
    module(f'{heads}.box_predictor.cls_score', CLASSES + 1, DENSE)
    module(f'{heads}.box_predictor.bbox_pred', 4 * CLASSES, DENSE)
    module(f'{heads}.mask_head.deconv', CHANNELS, CHANNELS, 2, 2)
    module(f'{heads}.mask_head.predictor', CLASSES, CHANNELS, 1, 1)
    return named


def weights() -> dict[str, np.ndarray]:
    """Every tensor, float32."""
    return tensors_of(shapes())


def maps() -> list[np.ndarray]:
    """Two maps for the proposals, float32 [2, h, w, CHANNELS]."""
    return [normal(f'map {h}', (2, h, w, CHANNELS)).astype(np.float32) for h, w in ((4, 6), (3, 2))]


def cells(size: int) -> np.ndarray:
    """float32 [2, 3, size, size, CHANNELS]."""
    return normal(f'cells {size}', (2, 3, size, size, CHANNELS)).astype(np.float32)


MODULES = {
    r'backbone\.simfp_2\.0': r'pyramid/quadruple_1',
    r'backbone\.simfp_2\.1': r'pyramid/quadruple_norm',
    r'backbone\.simfp_2\.3': r'pyramid/quadruple_2',
    r'backbone\.simfp_3\.0': r'pyramid/double',
    r'proposal_generator\.rpn_head\.conv\.conv(\d)': r'proposals/conv_\1',
    r'proposal_generator\.rpn_head\.objectness_logits': r'proposals/objectness',
    r'proposal_generator\.rpn_head\.anchor_deltas': r'proposals/deltas',
    r'roi_heads\.box_head\.fc1': r'box_head/dense',
    r'roi_heads\.box_predictor\.cls_score': r'box_head/classes',
    r'roi_heads\.box_predictor\.bbox_pred': r'box_head/deltas',
    r'roi_heads\.mask_head\.deconv': r'mask_head/double',
    r'roi_heads\.mask_head\.predictor': r'mask_head/masks',
}
LATERALS = {2: (4, 'x4'), 3: (1, 'x2'), 4: (0, 'x1'), 5: (1, 'half')}
for level_, (first_, name_) in LATERALS.items():
    for offset_, kind_ in enumerate(('lateral', 'output')):
        theirs_ = rf'backbone\.simfp_{level_}\.{first_ + offset_}'
        MODULES |= {theirs_: f'pyramid/{kind_}_{name_}/conv'}
        MODULES |= {rf'{theirs_}\.norm': f'pyramid/{kind_}_{name_}/norm'}
for number_ in range(4):
    for theirs_, ours_ in (('box_head.conv', 'box_head'), ('mask_head.mask_fcn', 'mask_head')):
        theirs_ = re.escape(f'roi_heads.{theirs_}{number_ + 1}')
        MODULES |= {theirs_: f'{ours_}/conv_{number_}/conv'}
        MODULES |= {rf'{theirs_}\.norm': f'{ours_}/conv_{number_}/norm'}


def to_tree(tensors: dict[str, np.ndarray]) -> dict:
    """Named tensors -> the nested parameters of pyramid and heads."""
    tree = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition('.')
        (path,) = (re.sub(a, b, module) for a, b in MODULES.items() if re.fullmatch(a, module))
        if leaf == 'weight':
            leaf = 'scale' if tensor.ndim == 1 else 'kernel'
            tensor = _kernel(path, tensor)
        node = tree
        for parent in path.split('/'):
            node = node.setdefault(parent, {})
        node[leaf] = tensor
    return tree


def _kernel(path: str, tensor: np.ndarray) -> np.ndarray:
    if path.endswith(('double', 'quadruple_1', 'quadruple_2')):  # transposed convolutions
        return tensor.transpose(0, 2, 3, 1)  # [in, out, 2, 2] -> [in, 2, 2, out]
    if path == 'box_head/dense':  # channel, row, column -> row, column, channel
        tensor = tensor.reshape(-1, CHANNELS, BOX_SIZE, BOX_SIZE)
        return tensor.transpose(2, 3, 1, 0).reshape(-1, len(tensor))
    if path in ('proposals/objectness', 'proposals/deltas', 'mask_head/masks'):
        return tensor[..., 0, 0].T
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


@functools.cache
def golden() -> dict[str, np.ndarray]:
    """What `make_mask_rcnn.py` stored."""
    with np.load(Path(__file__).with_name('mask_rcnn.npz')) as arrays:
        return dict(arrays)
