"""Batches of arrays in memory: every example once an epoch, from any step."""

import numpy as np
import pytest

from mae_jax.data.loader.memory import MemoryLoader, eval_batches
from mae_jax.data.sources.arrays import ArraySource


@pytest.fixture
def source():
    features = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    return ArraySource(features, np.arange(20), [str(label) for label in range(20)])


def labels_of(loader, steps):
    return np.concatenate([loader.batch_at(step)['label'] for step in steps])


def test_every_epoch_is_a_new_permutation_for_a_batch_size_that_does_not_divide_it(source):
    loader = MemoryLoader(source, batch_size=6, rows=range(6), seed=0)
    epochs = labels_of(loader, range(10)).reshape(3, 20)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(20))
    assert (epochs[0] != epochs[1]).any() and (epochs[0] != np.arange(20)).any()


def test_a_batch_may_be_larger_than_the_data(source):
    loader = MemoryLoader(source, batch_size=50, rows=range(50), seed=0)
    counts = np.bincount(labels_of(loader, range(2)))
    np.testing.assert_array_equal(counts, [5] * 20)


def test_a_stream_starts_at_any_step_with_features_and_their_labels(source):
    loader = MemoryLoader(source, batch_size=6, rows=range(6), seed=0)
    with loader.iterate(4) as batches:
        assert batches.ready()
        later = [next(batches) for _ in range(3)]
    for step, batch in enumerate(later, start=4):
        np.testing.assert_array_equal(batch['image'], source.images[batch['label']])
        assert batch['image'].dtype == np.float32 and batch['label'].dtype == np.int32
        np.testing.assert_array_equal(batch['label'], loader.batch_at(step)['label'])


def test_processes_share_one_global_batch_and_seeds_differ(source):
    def labels(rows, seed=0):
        return labels_of(MemoryLoader(source, batch_size=6, rows=rows, seed=seed), [3])

    whole = labels(range(6))
    np.testing.assert_array_equal(whole, np.concatenate([labels([0, 1, 2]), labels([3, 4, 5])]))
    assert (whole != labels(range(6), seed=1)).any()


@pytest.mark.parametrize(('limit', 'expected'), [(None, range(20)), (10, range(0, 20, 2))])
def test_evaluation_gives_every_example_once(source, limit, expected):
    batches = list(eval_batches(source, batch_size=8, rows=range(8), limit=limit))
    assert all(len(batch['label']) == 8 for batch in batches)
    valid = np.concatenate([batch['valid'] for batch in batches])
    labels = np.concatenate([batch['label'] for batch in batches])
    images = np.concatenate([batch['image'] for batch in batches])
    np.testing.assert_array_equal(labels[valid], expected)
    np.testing.assert_array_equal(images[valid], source.images[list(expected)])
    assert (labels[~valid] == -1).all()
