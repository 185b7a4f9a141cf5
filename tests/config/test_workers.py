"""How many worker processes load the images where dataset.workers is unset."""

import threading

import numpy as np
import pytest
from ml_collections import ConfigDict, config_dict

from mae_jax.config import data
from mae_jax.config import workers as module
from mae_jax.config.workers import choose_workers, packed_bytes, with_workers
from mae_jax.data.sources.arrays import ArraySource

GIB = 2**30
SMALL = (1000, 0)


@pytest.mark.parametrize(
    ('cores', 'memory', 'source', 'batch_size', 'workers', 'limit'),
    [
        (8, 100 * GIB, SMALL, 4096, 0, ''),
        (9, 100 * GIB, SMALL, 4096, 8, ''),
        (112, 400 * GIB, SMALL, 4096, 111, ''),
        (112, None, SMALL, 4096, 111, ''),
        (112, 10 * GIB, SMALL, 4096, 39, 'memory: 10.0 GiB'),
        (112, 400 * GIB, (GIB, 0), 4096, 64, 'memory: 400.0 GiB'),
        (112, 400 * GIB, (1000, 100 * GIB), 4096, 111, ''),
        (112, 40 * GIB, (1000, 100 * GIB), 4096, 0, 'memory'),
        (112, 400 * GIB, SMALL, 16, 16, '16 images'),
        (112, 400 * GIB, None, 4096, 0, 'cannot be pickled'),
    ],
)
def test_workers_follow_cores_memory_and_batch(cores, memory, source, batch_size, workers, limit):
    number, reason = choose_workers(cores, memory, source, batch_size)
    assert number == workers
    assert limit in reason and bool(limit) == bool(reason)


def test_arrays_of_a_source_are_shared_by_the_workers():
    images = np.zeros((100, 50, 50, 3), np.uint8)
    own, shared = packed_bytes(ArraySource(images, np.arange(100)))
    assert own < 20_000 and shared >= images.nbytes
    assert packed_bytes(lambda: images) is not None  # as cloudpickle does
    assert packed_bytes(threading.Lock()) is None


def config(workers=None, threads=None):
    fields = ConfigDict({'batch_size': 256, 'dataset': {'workers': 0, 'threads': 0}})
    for name, value in {'workers': workers, 'threads': threads}.items():
        fields.dataset[name] = config_dict.placeholder(int)
        fields.dataset[name] = value
    return fields


@pytest.mark.parametrize(
    ('given', 'cores', 'processes', 'line', 'workers', 'threads'),
    [
        ({}, 2, 1, 'input: 2 threads, for 2 cores', 0, None),
        ({}, 1, 1, 'input: 1 thread, for 1 core', 0, None),
        ({}, 64, 1, 'input: 63 worker processes of 1 thread, for 64 cores', 63, None),
        (
            {},
            64,
            4,
            'input: 15 worker processes of 1 thread, for 16 cores of 64, which 4 processes share',
            15,
            None,
        ),
        ({}, 8, 4, 'input: 2 threads, for 2 cores of 8, which 4 processes share', 0, 2),
        ({'workers': 3}, 2, 1, 'input: 3 worker processes of 1 thread, for 2 cores', 3, None),
        ({'workers': 0, 'threads': 5}, 64, 1, 'input: 5 threads, for 64 cores', 0, 5),
    ],
)
def test_a_run_says_what_loads_its_images(
    monkeypatch, given, cores, processes, line, workers, threads
):
    monkeypatch.setattr(module, 'num_cores', lambda: cores)
    monkeypatch.setattr('mae_jax.data.loader.read_ahead.num_cores', lambda: cores)
    monkeypatch.setattr(module, 'processes_here', lambda: processes)
    monkeypatch.setattr(module, 'available_memory', lambda: 400 * GIB)
    before = config(**given)
    after, said = with_workers(before, ArraySource(np.zeros((9, 4, 4, 3), np.uint8)))
    assert said == line
    assert (after.dataset.workers, after.dataset.threads) == (workers, threads)
    assert before.dataset.workers == given.get('workers')


@pytest.mark.parametrize(
    ('workers', 'limit', 'rows', 'expected'),
    [(40, None, 64, 15), (10, None, 64, 10), (40, 128, 64, 2), (40, 4, 64, 0), (40, None, 16, 3)],
)
def test_evaluation_has_workers_too_for_64_images_each(
    monkeypatch, tiny_config, workers, limit, rows, expected
):
    given = {}
    monkeypatch.setattr(data, 'eval_batches', lambda source, **options: given.update(options))
    tiny_config.dataset.workers = workers
    source = ArraySource(np.zeros((1000, 4, 4, 1), np.uint8))
    options = {'batch_size': 64, 'rows': np.arange(rows), 'limit': limit}
    data.make_eval_batches(tiny_config, source, **options)
    assert given['workers'] == expected and given['prefetch'] == tiny_config.dataset.prefetch
