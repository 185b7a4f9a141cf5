"""Suppression against torchvision's (`tests/golden/make_mask_rcnn.py`) and against a loop."""

import jax
import mask_rcnn
import numpy as np
import pytest
from mask_rcnn import THRESHOLDS, golden

from mae_jax.models.detection.nms import pick, survivors


@pytest.mark.parametrize('threshold', THRESHOLDS)
def test_survivors_are_torchvisions(threshold):
    """Also of equal scores and of equal boxes."""
    boxes, scores, _ = mask_rcnn.crowded()
    order = np.argsort(-scores, kind='stable')
    kept = survivors(boxes[order], np.ones(len(order), bool), threshold)
    np.testing.assert_array_equal(order[np.asarray(kept)], golden()[f'nms/{threshold}'])


@pytest.mark.parametrize('threshold', THRESHOLDS)
def test_picks_within_groups_are_those_of_torchvisions_batched_nms(threshold):
    boxes, scores, groups = (x[None] for x in mask_rcnn.crowded())
    expected = golden()[f'batched/{threshold}']
    everything = np.ones(scores.shape, bool)
    index, valid = pick(boxes, scores, groups, everything, threshold, len(scores[0]))
    np.testing.assert_array_equal(index[0, : len(expected)], expected)
    np.testing.assert_array_equal(valid[0], np.arange(80) < len(expected))
    assert not index[0, len(expected) :].any()
    few, _ = pick(boxes, scores, groups, everything, threshold, 5)
    np.testing.assert_array_equal(few[0], expected[:5])


def overlap(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def kept_by_a_loop(boxes, valid, threshold):
    kept = []
    for i in np.flatnonzero(valid):
        if all(overlap(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def test_invalid_boxes_neither_suppress_nor_are_left():
    """Of several images and maps at once, with chains in which each suppresses the next."""
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 30, (2, 3, 40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 20, (2, 3, 40, 2))], -1).astype('f')
    left = np.arange(40) * 3.0
    boxes[0, 0] = np.stack([left, 0 * left, left + 10, 0 * left + 10], -1)
    valid = rng.uniform(size=(2, 3, 40)) < 0.8
    valid[0, 0], valid[1, 2] = True, False
    kept = np.asarray(jax.jit(lambda b, v: survivors(b, v, 0.4))(boxes, valid))
    for place in np.ndindex(2, 3):
        expected = kept_by_a_loop(boxes[place].astype(float), valid[place], 0.4)
        assert list(np.flatnonzero(kept[place])) == expected
    np.testing.assert_array_equal(kept[0, 0], np.arange(40) % 2 == 0)


def test_nothing_is_picked_where_nothing_is_valid():
    boxes, scores, groups = (x[None] for x in mask_rcnn.crowded())
    picked = pick(boxes, scores, groups, np.zeros(scores.shape, bool), 0.5, 4)
    assert not picked.valid.any()
    assert not picked.index.any()


@pytest.mark.parametrize('threshold', [0.05, 0.4, 0.8])
def test_random_boxes_agree_with_torchvision(threshold):
    """Hundreds, in groups and without."""
    torch, ops = pytest.importorskip('torch'), pytest.importorskip('torchvision.ops')
    rng = np.random.default_rng(2)
    corners = rng.uniform(0, 300, (600, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 120, (600, 2))], -1).astype('f')
    scores, groups = rng.uniform(size=600).astype('f'), rng.integers(0, 7, 600)
    arrays = map(torch.from_numpy, (boxes, scores, groups))
    expected = ops.batched_nms(*arrays, threshold).numpy()
    everything = np.ones((1, 600), bool)
    index, valid = pick(boxes[None], scores[None], groups[None], everything, threshold, 600)
    np.testing.assert_array_equal(index[valid], expected)
    order = np.argsort(-scores, kind='stable')
    expected = ops.nms(*map(torch.from_numpy, (boxes, scores)), threshold).numpy()
    kept = np.asarray(survivors(boxes[order], everything[0], threshold))
    np.testing.assert_array_equal(order[kept], expected)
