"""Boxes by hand and by torchvision: `tests/golden/make_mask_rcnn.py`."""

import mask_rcnn
import numpy as np
import pytest
from mask_rcnn import golden

from mae_jax.models.detection.anchors import cell_anchors, grid_anchors
from mae_jax.models.detection.boxes import area, clip, decode, encode, iou, is_filled


def test_area_and_overlap_of_a_few_boxes():
    boxes = np.array([[0, 0, 4, 2], [2, 1, 6, 3], [4, 0, 5, 2], [3, 3, 3, 9], [5, 5, 2, 2]], 'f')
    np.testing.assert_array_equal(area(boxes), [8, 8, 2, 0, 0])
    expected = [1, 2 / 14, 0, 0, 0]  # boxes that touch do not overlap, nor do empty ones
    np.testing.assert_allclose(iou(boxes[:1], boxes)[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(is_filled(boxes), [True, True, True, False, False])


def test_overlaps_are_torchvisions():
    np.testing.assert_allclose(iou(*mask_rcnn.matched()), golden()['overlaps'], rtol=1e-6)


def test_boxes_are_clipped_to_the_image_that_they_are_in():
    boxes = np.tile(np.array([-3, -2, 50, 60], 'f'), (2, 1, 1))
    clipped = clip(boxes, np.array([[30, 40], [100, 20]]))
    np.testing.assert_array_equal(clipped[:, 0], [[0, 0, 40, 30], [0, 0, 20, 60]])


def test_coding_is_torchvisions():
    boxes, references, deltas = mask_rcnn.pairs()
    weights = mask_rcnn.WEIGHTS
    encoded = encode(boxes, references, weights)
    np.testing.assert_allclose(encoded, golden()['encoded'], rtol=2e-5, atol=1e-4)
    decoded = decode(deltas, references, weights)
    assert (np.abs(deltas[:, 2:] / 5) > np.log(1000 / 16)).any()  # some are bounded
    np.testing.assert_allclose(decoded, golden()['decoded'], rtol=1e-5, atol=2e-3)


def test_decoding_inverts_encoding():
    boxes, references, _ = mask_rcnn.pairs()
    again = decode(encode(boxes, references), references)
    np.testing.assert_allclose(again, boxes, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('number', range(len(mask_rcnn.ANCHORS)))
def test_anchors_are_torchvisions_but_for_their_rounding(number):
    """It rounds the edges of the shapes around the origin."""
    (size, first), grid, stride = mask_rcnn.ANCHORS[number]
    anchors = grid_anchors(grid, float(stride), size, (first, *mask_rcnn.RATIOS[1:]))
    assert anchors.dtype == np.float32
    np.testing.assert_array_equal(np.round(anchors), golden()[f'anchors/{number}'])


def test_anchors_have_one_area_and_their_ratios():
    anchors = cell_anchors(32.0, (0.5, 1.0, 2.0))
    width, height = (anchors[:, 2:] - anchors[:, :2]).T
    np.testing.assert_allclose(width * height, 32**2, rtol=1e-6)
    np.testing.assert_allclose(height / width, [0.5, 1, 2], rtol=1e-6)
    np.testing.assert_array_equal(anchors[:, :2], -anchors[:, 2:])
