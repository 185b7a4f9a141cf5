"""Matching against torchvision's, and drawing against sorting."""

import jax
import mask_rcnn
import numpy as np
import pytest
from mask_rcnn import golden

from mae_jax.models.detection.matching import match
from mae_jax.models.detection.sampling import gather_samples, sample


@pytest.mark.parametrize('low_quality', [False, True])
def test_matches_are_torchvisions(low_quality):
    """Overlaps are often equal; padding is where its boxes are best of all, and matches nothing."""
    truth, candidates = mask_rcnn.matched()
    padded = np.concatenate([candidates[:2], truth])[None]
    valid = np.array([[False] * 2 + [True] * len(truth)])
    index, label = match(candidates[None], padded, valid, 0.3, 0.7, low_quality)
    expected = golden()[f'matched/{low_quality}']
    assert {-2, -1, 0, 3} <= set(expected)
    np.testing.assert_array_equal(label[0], np.select([expected >= 0, expected == -2], [1, -1]))
    positive = expected >= 0
    np.testing.assert_array_equal(index[0][positive], expected[positive] + 2)


def test_low_quality_matches_are_those_that_differ_from_the_best_by_rounding():
    truth = np.array([[[0, 0, 10, 10]]], 'f')
    candidates = np.array([[[0, 0, 5, 10], [5, 0, 10, 10], [0, 0, 4.99, 10]]], 'f')
    candidates[0, 1, 0] = np.nextafter(np.float32(5), np.float32(6))
    _, label = match(candidates, truth, np.array([[True]]), 0.6, 0.7, allow_low_quality=True)
    np.testing.assert_array_equal(label, [[1, 1, 0]])


def test_without_boxes_all_is_background():
    _, candidates = mask_rcnn.matched()
    boxes, valid = np.zeros((1, 3, 4), 'f'), np.zeros((1, 3), bool)
    _, label = match(candidates[None], boxes, valid, 0.3, 0.7, allow_low_quality=True)
    np.testing.assert_array_equal(label, 0)


def drawn_by_sorting(label, noise, count, positives):
    result = np.zeros(len(label), bool)
    order = np.argsort(noise, kind='stable')
    chosen = [i for i in order if label[i] == 1][:positives]
    chosen += [i for i in order if label[i] == 0][: count - len(chosen)]
    result[chosen] = True
    return result


@pytest.mark.parametrize(('count', 'positives'), [(20, 10), (8, 2), (50, 25), (90, 80), (6, 0)])
def test_the_smallest_noise_is_drawn_and_background_fills_up(count, positives):
    """Few, many and no positive ones; not enough of all; equal noise."""
    rng = np.random.default_rng(0)
    shares = [(0.05, 0.1, 0.85), (0.3, 0.6, 0.1), (0.7, 0.2, 0.1), (1, 0, 0), (0, 0.9, 0.1)]
    label = np.stack([rng.choice([-1, 1, 0], 60, p=share) for share in shares])
    noise = rng.integers(0, 12, label.shape).astype(np.float32) / 12
    drawn = np.asarray(jax.jit(lambda *x: sample(*x, count, positives))(label, noise))
    for row in range(len(shares)):
        expected = drawn_by_sorting(label[row], noise[row], count, positives)
        np.testing.assert_array_equal(drawn[row], expected)
    index, valid = gather_samples(label, drawn, count)
    assert index.shape == valid.shape == (len(shares), count)
    for row in range(len(shares)):
        places = np.flatnonzero(drawn[row])
        expected = [*places[label[row, places] == 1], *places[label[row, places] == 0]]
        np.testing.assert_array_equal(index[row][valid[row]], expected)
        assert not valid[row, len(expected) :].any()
