"""Loads batches ahead of their use, in threads or in worker processes."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from mae_jax.data.loader.order import Share
from mae_jax.data.loader.stream import Stream, start_worker
from mae_jax.errors import UserError
from mae_jax.runtime.cores import num_cores

MAX_CHUNK = 8
"""The most images that one thread loads at a time, so that all threads work on the same batch."""


def default_threads() -> int:
    """Returns one thread for each core, at most eight.

    More threads than cores wait for each other's interpreter lock; above eight cores, worker
    processes scale and threads do not.
    """
    return min(8, num_cores())


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """How batches are read ahead and which errors are tolerated; the fields are `dataset.*`.

    Attributes:
      threads: of each process that loads images; None for `default_threads`.
      workers: worker processes; with 0 the process of the run loads the images.
      prefetch: batches that are loaded ahead.
      timeout_s: seconds after which a batch that has not come is an error.
      on_error: 'raise', or 'skip' to replace unreadable images.
      max_bad_share: share of unreadable images above which 'skip' raises after all.

    Raises:
      UserError: a value is not allowed.
    """

    threads: int | None = None
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
    load: Callable[[int], dict[str, np.ndarray]],
    share: Share,
    *,
    start_step: int,
    stop_step: int,
    options: ReadOptions,
    prepare: Callable[[dict], Any],
    finish: Callable[[Any], dict],
) -> Stream:
    """Starts to load the batches of steps start_step ... stop_step - 1.

    Args:
      load: returns the rows of the image at a position of the sequence of all images; it must be
        picklable where there are worker processes.
      share: the images that this process loads for each batch.
      start_step, stop_step: the range of steps.
      options: threads, workers, prefetch and timeout are used.
      prepare: called with each batch in the reading thread, ahead of its use.
      finish: called with the result of `prepare` when the batch is handed out.

    Returns:
      An iterator over the results of `finish`.
    """
    images = len(share)
    chunk = next(size for size in range(min(images, MAX_CHUNK), 0, -1) if images % size == 0)
    chunks_ahead = -(-options.prefetch * images // chunk // max(options.workers, 1))
    threads = options.threads or default_threads()

    def make(register: str) -> grain.IterDataset:
        counts = grain.MapDataset.range(start_step * images, stop_step * images)
        chunks = counts.map(share.position).map(load).batch(chunk, batch_fn=join)
        dataset = chunks.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, chunks_ahead))
        )
        if options.workers:
            if not flags.FLAGS.is_parsed():  # in a notebook or a test; grain reads its own flags
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(
                grain.multiprocessing.MultiprocessingOptions(
                    num_workers=options.workers, per_worker_buffer_size=chunks_ahead
                ),
                worker_init_fn=functools.partial(start_worker, register),
            )
        return dataset.batch(images // chunk, batch_fn=join)

    return Stream(make, prepare, finish, options.timeout_s)


def join(chunks: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenates the rows of several dictionaries with the same keys.

    Raises:
      UserError: their images have different dtypes.
    """
    _check_dtypes(chunks)
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _check_dtypes(chunks: Sequence[dict[str, np.ndarray]]) -> None:
    # NumPy would convert all to one dtype, and config.dataset.scale would be wrong for some.
    name = 'canvas' if 'canvas' in chunks[0] else 'image'
    examples = {str(chunk[name].dtype): chunk['name'][0] for chunk in reversed(chunks)}
    if len(examples) > 1:
        files = ' and '.join(f'{file} ({dtype})' for dtype, file in sorted(examples.items()))
        raise UserError(
            f'Images of several depths cannot share a batch: {files}. Save all with one depth '
            '(ImageMagick: mogrify -depth 8 FILE), or keep those of each depth in a folder of '
            'their own.'
        )
