"""Pyramid and heads against PyTorch's layers: `tests/golden/make_mask_rcnn.py`."""

import functools

import jax
import jax.numpy as jnp
import mask_rcnn
import numpy as np
import pytest
import vitdet
from mask_rcnn import CHANNELS, CLASSES, golden

from mae_jax.errors import UserError
from mae_jax.models.detection.detector import Detector
from mae_jax.models.detection.heads import BoxHead, MaskHead
from mae_jax.models.detection.options import DetectorOptions
from mae_jax.models.detection.proposals import ProposalHead
from mae_jax.models.detection.pyramid import FeaturePyramid, pyramid_grids
from mae_jax.models.options import EncoderOptions
from mae_jax.models.positions import resize_positions
from mae_jax.models.relative import resize_offsets
from mae_jax.models.vit import Encoder

SMALL = DetectorOptions(
    channels=CHANNELS,
    box_size=mask_rcnn.BOX_SIZE,
    mask_size=mask_rcnn.MASK_SIZE,
    box_width=mask_rcnn.DENSE,
)
HEADS = {'box_head': BoxHead(CLASSES, SMALL), 'mask_head': MaskHead(CLASSES, SMALL)}


@functools.cache
def params() -> dict:
    return mask_rcnn.to_tree(mask_rcnn.weights())


def close(actual, expected, share: float = 2e-5):
    """To a share of the largest number."""
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=share * np.abs(expected).max())


def encoder_params(grid) -> dict:
    """The golden ViTDet's, with positions of this grid."""
    tree = vitdet.to_tree(vitdet.weights())
    tree['pos_embed'] = resize_positions(tree['pos_embed'], vitdet.PRETRAINED, grid)
    for block in vitdet.GLOBAL:
        attention = tree['blocks'][f'block_{block}']['attention']
        for name, side in zip(('rel_pos_h', 'rel_pos_w'), grid, strict=True):
            attention[name] = resize_offsets(attention[name], side)
    return tree


@pytest.mark.parametrize('case', vitdet.GRIDS)
def test_encoder_and_pyramid_are_those_of_pytorch(case):
    """With windows that do not divide the map, and a map with an odd side."""
    options = EncoderOptions(
        'vitdet', cls_token=False, window=vitdet.WINDOW, global_blocks=vitdet.GLOBAL
    )
    encoder = Encoder(vitdet.PATCH_SIZE, vitdet.WIDTH, vitdet.DEPTH, vitdet.HEADS, options=options)
    weights = params() | {'encoder': encoder_params(vitdet.GRIDS[case])}
    run = jax.jit(functools.partial(Detector(encoder, CLASSES, SMALL).apply, method='maps'))
    maps = run({'params': weights}, vitdet.images(case))
    assert [x.shape[1:3] for x in maps] == pyramid_grids(vitdet.GRIDS[case])
    for number, x in enumerate(maps):
        close(x, golden()[f'pyramid/{case}/{number}'])


def test_objectness_and_deltas_of_anchors_are_those_of_pytorch():
    """Anchors are in the order of `grid_anchors`."""
    maps = mask_rcnn.maps()
    logits, deltas = jax.jit(ProposalHead(SMALL).apply)({'params': params()['proposals']}, maps)
    for number in range(len(maps)):
        close(logits[number], golden()[f'proposals/{number}/logits'])
        close(deltas[number], golden()[f'proposals/{number}/deltas'])


def test_classes_and_boxes_are_those_of_pytorch():
    run = jax.jit(HEADS['box_head'].apply)
    logits, deltas = run({'params': params()['box_head']}, mask_rcnn.cells(mask_rcnn.BOX_SIZE))
    close(logits.reshape(6, -1), golden()['classes'])
    close(deltas.reshape(6, -1), golden()['deltas'])


def test_masks_are_those_of_pytorch():
    run = jax.jit(HEADS['mask_head'].apply)
    masks = run({'params': params()['mask_head']}, mask_rcnn.cells(mask_rcnn.MASK_SIZE))
    close(masks.reshape(6, 8, 8, -1), golden()['masks'])


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_what_heads_return_is_float32(dtype):
    def run(key):
        maps, features = mask_rcnn.maps(), jnp.zeros((1, 4, 4, 8))
        cells = {name: mask_rcnn.cells(getattr(SMALL, name[:-4] + 'size')) for name in HEADS}
        modules = {name: head.clone(dtype=dtype) for name, head in HEADS.items()}
        outputs = [head.init_with_output(key, cells[name]) for name, head in modules.items()]
        outputs.append(ProposalHead(SMALL, dtype).init_with_output(key, maps))
        return outputs, FeaturePyramid(CHANNELS, dtype).init_with_output(key, features)

    heads, (maps, weights) = jax.eval_shape(run, jax.random.key(0))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((heads, weights)))
    assert all(x.dtype == dtype for x in maps)


def test_initial_values_are_detectron2s():
    """Standard deviations and bounds of each kind of layer, wide enough to be measured."""
    options = DetectorOptions(channels=64, box_width=128, box_convolutions=1, mask_convolutions=1)
    key, cells = jax.random.key(0), jnp.zeros((1, 1, 7, 7, 64))
    box = jax.jit(BoxHead(80, options).init)(key, cells)['params']
    mask = jax.jit(MaskHead(80, options).init)(key, cells)['params']
    rpn = jax.jit(ProposalHead(options).init)(key, [jnp.zeros((1, 2, 2, 64))])['params']
    pyramid = jax.jit(FeaturePyramid(64).init)(key, jnp.zeros((1, 2, 2, 128)))['params']

    def std(tree) -> float:
        return float(jnp.std(tree['kernel']))

    he = (2 / (9 * 64)) ** 0.5
    assert std(box['conv_0']['conv']) == pytest.approx(he, rel=0.02)
    assert std(mask['conv_0']['conv']) == pytest.approx(he, rel=0.02)
    assert std(mask['double']) == pytest.approx((2 / (4 * 64)) ** 0.5, rel=0.02)
    assert not mask['double']['bias'].any()
    bound = (3 / (49 * 64)) ** 0.5
    assert float(jnp.abs(box['dense']['kernel']).max()) == pytest.approx(bound, rel=1e-3)
    for tree, expected in (
        (box['classes'], 0.01),
        (box['deltas'], 0.001),
        (mask['masks'], 0.001),
        (rpn['conv_0'], 0.01),
        (rpn['objectness'], 0.01),
        (rpn['deltas'], 0.01),
    ):
        assert std(tree) == pytest.approx(expected, rel=0.15)
        assert not tree['bias'].any()
    bound = (9 * 64) ** -0.5
    assert float(jnp.abs(pyramid['output_x1']['conv']['kernel']).max()) == pytest.approx(
        bound, 1e-2
    )


def test_an_image_of_one_patch_is_refused():
    with pytest.raises(UserError, match='1 x 4 patches is too small for detection'):
        pyramid_grids((1, 4))
