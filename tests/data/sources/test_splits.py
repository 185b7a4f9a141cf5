"""What is held out of a data set without an evaluation split."""

import numpy as np
import pytest

from mae_jax.data.sources.arrays import ArraySource
from mae_jax.data.sources.splits import choose_held_out
from mae_jax.data.sources.subset import hold_out


def of_each_class(sizes, share=None):
    """Returns how many of classes of these sizes are held out."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    keys = np.random.default_rng(0).uniform(size=len(labels))
    keys[labels < len(sizes) - 1] += 0.05  # by the twentieth alone, the last class is held out
    return np.bincount(labels[choose_held_out(keys, labels, share)], minlength=len(sizes))


def test_ten_of_each_class_are_held_out_or_a_fifth():
    counts = of_each_class([1, 2, 3, 9, 10, 30, 50, 100, 5000])
    assert list(counts[:8]) == [0, 1, 1, 1, 2, 6, 10, 10]
    assert 210 <= counts[8] <= 290  # a twentieth


def test_a_share_replaces_the_rule():
    counts = of_each_class([30, 3000], share=0.3)
    assert 840 <= counts[1] <= 960
    assert list(of_each_class([3, 3, 3], share=1e-6)) == [1, 1, 1]
    assert list(of_each_class([1, 3, 3], share=1e-6)) == [0, 1, 1]


def test_those_with_the_smallest_keys_are_held_out():
    keys = np.array([0.9, 0.04, 0.5, 0.3, 0.6, 0.2, 0.7, 0.8, 0.45, 0.55])
    labels = np.zeros(10, int)
    assert list(np.flatnonzero(choose_held_out(keys, labels))) == [1, 5]
    assert list(np.flatnonzero(choose_held_out(keys, None))) == [1]
    order = 1 - keys
    assert list(np.flatnonzero(choose_held_out(keys, labels, order=order))) == [0, 1]
    assert list(np.flatnonzero(choose_held_out(keys, labels, 0.25))) == [1, 5]


def test_without_labels_a_twentieth_is_held_out_and_at_least_one():
    keys = np.random.default_rng(0).permutation(1000) / 1000
    assert choose_held_out(keys, None).sum() == 50
    assert choose_held_out(keys, np.full(1000, -1)).sum() == 50
    assert choose_held_out(np.array([0.6, 0.5]), None).tolist() == [False, True]
    assert choose_held_out(np.array([0.01, 0.02]), None).tolist() == [True, False]


@pytest.mark.parametrize('count', [2, 19, 20, 399, 400, 1000])
def test_a_share_of_arrays_is_that_of_earlier_versions(count):
    """They held out the first `count // 20` of a permutation, whatever the labels."""
    source = ArraySource(np.zeros((count, 1, 1, 1), np.uint8), np.arange(count) % 3)
    order = np.random.RandomState(0).permutation(count)
    train, held_out = hold_out(source, 0.05)
    assert list(held_out.rows) == sorted(order[: max(1, count // 20)])
    assert sorted([*train.rows, *held_out.rows]) == list(range(count))
