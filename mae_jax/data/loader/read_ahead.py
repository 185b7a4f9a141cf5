"""Loads batches ahead of their use, in threads or in worker processes."""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

from mae_jax.data.loader.assembly import Destination, Loaded, assemble
from mae_jax.data.loader.layout import layout_of
from mae_jax.data.loader.order import Share
from mae_jax.data.loader.readers import Load, Threads, Workers
from mae_jax.data.loader.stream import Stream
from mae_jax.errors import UserError
from mae_jax.runtime.cores import num_cores

MAX_THREADS = 8
"""Above so many cores, worker processes scale and threads do not."""


def default_threads(workers: int = 0) -> int:
    """Returns one thread for each worker process, or one for each core, at most eight.

    More threads than cores wait for each other's interpreter lock.
    """
    return 1 if workers else max(1, min(MAX_THREADS, num_cores()))


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
    load: Load,
    item: Callable[[int], Any],
    share: Share,
    *,
    start_step: int,
    stop_step: int,
    options: ReadOptions,
    destination: Destination,
    finish: Callable[[Loaded], dict],
) -> Stream:
    """Starts to load the batches of steps start_step ... stop_step - 1.

    Args:
      load: item -> the rows of an image; it must be picklable where there are worker processes.
      item: position in the sequence of all images -> what `load` needs, small and picklable.
      share: the images that this process loads for each batch.
      start_step, stop_step: the range of steps.
      options: threads, workers, prefetch and timeout are used.
      destination: where the pieces of a batch go, ahead of its use.
      finish: called with each batch when it is handed out.

    Returns:
      An iterator over the results of `finish`.

    Raises:
      UserError: the images do not divide into the pieces of `destination`.
    """
    if len(share) % destination.pieces:
        raise UserError(
            f'{len(share)} images cannot be shared among {destination.pieces} devices: choose a '
            'multiple as batch_size.'
        )
    images = len(share) // destination.pieces
    counts = range(start_step * len(share), stop_step * len(share))
    slots = options.prefetch * destination.pieces
    threads = options.threads or default_threads(options.workers)

    def readers() -> Threads | Workers:
        layout = layout_of(load(item(share.position(counts[0]))), images)
        if options.workers:
            return Workers(load, layout, threads, options.workers, slots)
        return Threads(load, layout, threads)

    def batches(readers: Threads | Workers, stop: threading.Event):
        return assemble(
            readers,
            destination,
            lambda count: item(share.position(count)),
            counts,
            images=images,
            slots=slots,
            stop=stop,
        )

    return Stream(readers if counts else None, batches, finish, options.timeout_s)
