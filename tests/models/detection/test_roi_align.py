"""RoIAlign and levels against torchvision's: `tests/golden/make_mask_rcnn.py`."""

import jax
import jax.numpy as jnp
import mask_rcnn
import numpy as np
import pytest
from mask_rcnn import ROI_CASES, golden

from mae_jax.models.detection import roi_align as module
from mae_jax.models.detection.roi_align import assign_levels, multilevel_roi_align, roi_align


def features() -> np.ndarray:
    return mask_rcnn.normal('roi map', mask_rcnn.MAP).astype(np.float32)


def cells_and_gradient(scale, size, boxes):
    """As the golden ones, of all boxes in one row."""
    cells, pull = jax.vjp(lambda x: roi_align(x, boxes, scale, size), features())
    incoming = mask_rcnn.normal('roi gradient', (cells.shape[0] * cells.shape[1], *cells.shape[2:]))
    (gradient,) = pull(jnp.asarray(incoming, jnp.float32).reshape(cells.shape))
    return np.asarray(cells).reshape(incoming.shape), np.asarray(gradient)


@pytest.mark.parametrize('chunk', [module.CHUNK, 4000])
@pytest.mark.parametrize('case', ROI_CASES)
def test_cells_and_gradient_are_torchvisions(case, chunk, monkeypatch):
    """In one chunk and in several, the last of which is not full."""
    monkeypatch.setattr(module, 'CHUNK', chunk)
    scale, size = ROI_CASES[case]
    cells, gradient = cells_and_gradient(scale, size, mask_rcnn.roi_boxes())
    np.testing.assert_allclose(cells, golden()[f'roi/{case}/cells'], atol=1e-5)
    expected = golden()[f'roi/{case}/gradient'].transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradient, expected, atol=1e-5 * np.abs(expected).max())


def test_boxes_have_no_gradient():
    boxes = jnp.asarray(mask_rcnn.roi_boxes())
    gradient = jax.grad(lambda boxes: roi_align(features(), boxes, 0.25, 2).sum())(boxes)
    assert not gradient.any()


def test_gradients_of_chunks_are_added_up_in_float32(monkeypatch):
    """256 boxes of 1 on one cell: bfloat16 could not count further than 256."""
    monkeypatch.setattr(module, 'CHUNK', 1)
    x = jnp.zeros((1, 1, 1, 1), jnp.bfloat16)
    boxes = jnp.tile(jnp.array([0.0, 0, 1, 1]), (1, 515, 1))
    cells, pull = jax.vjp(lambda x: roi_align(x, boxes, 1.0, 1), x)
    assert cells.dtype == jnp.bfloat16
    gradient = pull(jnp.ones_like(cells))[0]
    assert float(gradient[0, 0, 0, 0]) == 516  # 515, rounded once


def test_bfloat16_cells_are_nearly_those_of_float32():
    boxes = mask_rcnn.roi_boxes()
    narrow = roi_align(jnp.asarray(features(), jnp.bfloat16), boxes, 0.25, 7)
    exact = roi_align(features(), boxes, 0.25, 7)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(jnp.float32), exact, atol=0.05)


def test_levels_are_those_of_torchvision():
    levels = assign_levels(mask_rcnn.level_boxes(), 4.0, 4)
    assert set(golden()['levels']) == {0, 1, 2, 3}
    np.testing.assert_array_equal(levels, golden()['levels'])


@pytest.mark.parametrize(('stride', 'side', 'level'), [(4.0, 111, 0), (4.0, 113, 1), (2.0, 111, 1)])
def test_a_box_has_the_level_of_its_size_whatever_the_first_stride(stride, side, level):
    assert assign_levels(np.array([3, 3, 3 + side, 3 + side], 'f'), stride, 4) == level


def test_each_box_is_cut_from_the_map_of_its_size():
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(2, n, n, 3)).astype('f') for n in (64, 32, 16, 8)]
    sides = np.array([20, 150, 60, 250, 240, 500], 'f')
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], axis=-1)
    boxes = np.stack([boxes, boxes[::-1] + 1])
    cells = multilevel_roi_align(maps, boxes, 4.0, 5)
    levels = np.asarray(assign_levels(boxes, 4.0, 4))
    assert set(levels.flat) == {0, 1, 2, 3}
    for image, box in np.ndindex(2, 6):
        level = levels[image, box]
        one = np.s_[image : image + 1]
        expected = roi_align(maps[level][one], boxes[one, box : box + 1], 0.25 / 2**level, 5)
        np.testing.assert_allclose(cells[image, box], expected[0, 0], atol=1e-6)


@pytest.mark.parametrize('size', [1, 7])
def test_random_boxes_agree_with_torchvision(size):
    torch, ops = pytest.importorskip('torch'), pytest.importorskip('torchvision.ops')
    rng = np.random.default_rng(size)
    x = rng.normal(size=(2, 16, 20, 4)).astype('f')
    corners = rng.uniform(-40, 300, (2, 60, 2))
    boxes = np.concatenate([corners, corners + rng.exponential(60, (2, 60, 2))], -1).astype('f')
    channels_first = torch.from_numpy(x).permute(0, 3, 1, 2)
    rois = list(torch.from_numpy(boxes))
    options = dict(sampling_ratio=2, aligned=True)
    expected = ops.roi_align(channels_first, rois, (size, size), 1 / 16, **options)
    cells = roi_align(x, boxes, 1 / 16, size).reshape(120, size, size, 4)
    np.testing.assert_allclose(cells, expected.permute(0, 2, 3, 1), atol=2e-5)
