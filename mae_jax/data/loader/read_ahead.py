"""How batches are read ahead: threads, worker processes, and the chunks that they share."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from mae_jax.data.loader.stream import Stream, start_worker
from mae_jax.errors import UserError

MAX_CHUNK = 8  # images that one thread loads at a time, so that all of them share in a batch


def num_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def default_threads() -> int:
    """One a core, up to eight: past that processes scale and threads do not.

    More threads than cores wait for each other's interpreter lock.
    """
    return min(8, num_cores())


@dataclasses.dataclass(frozen=True)
class Reading:
    """How batches are read ahead, and what may go wrong on the way (config.dataset)."""

    threads: int | None = None  # unset: `default_threads`
    workers: int = 0
    prefetch: int = 2
    timeout_s: float = 300.0
    on_error: str = 'raise'
    max_bad_share: float = 0.01

    def __post_init__(self):
        if self.on_error not in ('raise', 'skip'):
            raise UserError(f'dataset.on_error={self.on_error!r} must be raise or skip.')
        for field, least in (('threads', 1), ('workers', 0), ('prefetch', 1)):
            value = getattr(self, field)
            if value is not None and value < least:
                raise UserError(f'dataset.{field}={value} must be at least {least}.')


def read_ahead(
    load: Callable[[int], dict],
    position: Callable[[int], int],
    images: int,
    start_step: int,
    stop_step: int,
    reading: Reading,
    prepare: Callable[[dict], Any],
    finish: Callable[[Any], dict],
) -> Stream:
    """Steps start_step ... stop_step of `load(position(n))`, so many images a batch."""
    chunk = next(size for size in range(min(images, MAX_CHUNK), 0, -1) if images % size == 0)
    chunks_ahead = -(-reading.prefetch * images // chunk // max(reading.workers, 1))
    threads = reading.threads or default_threads()

    def make(register: str) -> grain.IterDataset:
        numbers = grain.MapDataset.range(start_step * images, stop_step * images)
        chunks = numbers.map(position).map(load).batch(chunk, batch_fn=join)
        options = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=max(threads, chunks_ahead)
        )
        dataset = chunks.to_iter_dataset(options)
        if reading.workers:
            if not flags.FLAGS.is_parsed():  # a notebook or a test: grain reads flags of its own
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(
                grain.multiprocessing.MultiprocessingOptions(
                    num_workers=reading.workers, per_worker_buffer_size=chunks_ahead
                ),
                worker_init_fn=functools.partial(start_worker, register),
            )
        return dataset.batch(images // chunk, batch_fn=join)

    return Stream(make, prepare, finish, reading.timeout_s)


def join(parts: Sequence[dict]) -> dict[str, np.ndarray]:
    """Rows one after another."""
    _check_dtypes(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _check_dtypes(parts: Sequence[dict]) -> None:
    """NumPy would make one dtype of several without a word, and the scale be wrong for some."""
    name = 'canvas' if 'canvas' in parts[0] else 'image'
    dtypes = sorted({str(part[name].dtype) for part in parts})
    if len(dtypes) > 1:
        raise UserError(f'Images of several depths ({", ".join(dtypes)}) cannot share a batch.')
