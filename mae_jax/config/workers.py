"""Chooses the worker processes of the input: `dataset.workers` where it is unset."""

from typing import Any

from ml_collections import ConfigDict

from mae_jax.data.loader.read_ahead import MAX_THREADS, default_threads
from mae_jax.data.loader.worker import pack
from mae_jax.errors import counted
from mae_jax.runtime.cores import available_memory, num_cores, processes_here

GIB = 2**30
WORKER_BYTES = 128 * 2**20
"""Memory of a worker process, without its copy of the data set's description."""
UNPICKLED = 3
"""An object takes about so many times the bytes of its pickle."""
IMAGES = 64
"""A worker process is worth its start for so many images."""


def with_workers(config: ConfigDict, source: Any) -> tuple[ConfigDict, str]:
    """Returns a copy of a config in which `dataset.workers` is set, and a line about the input.

    Every process of a run must call it.

    Args:
      config: of a run, with a batch size.
      source: the training examples.
    """
    config = config.copy_and_resolve_references()
    cores, processes = num_cores(), processes_here()
    share = max(cores // processes, 1)
    limit = ''
    if config.dataset.workers is None:
        memory = available_memory()
        workers, limit = choose_workers(
            share,
            None if memory is None else memory // processes,
            packed_bytes(source),
            config.batch_size,
        )
        config.dataset.workers = workers
    workers = config.dataset.workers
    if config.dataset.threads is None and not workers and share < default_threads():
        config.dataset.threads = share  # several processes have the same cores
    threads = config.dataset.threads or default_threads(workers)
    each = counted(threads, 'thread')
    readers = f'{counted(workers, "worker process")} of {each}' if workers else each
    others = f' of {cores}, which {processes} processes share' if processes > 1 else ''
    line = f'input: {readers}, for {counted(share, "core")}{others}'
    return config, f'{line} ({limit})' if limit else line


def choose_workers(
    cores: int, memory: int | None, source: tuple[int, int] | None, batch_size: int
) -> tuple[int, str]:
    """Returns the number of worker processes, and what limits it beside the cores, or ''.

    None up to eight cores, where threads do as well and start at once. Above, one for each core but
    the one of the process that trains, as far as half of the memory suffices and a batch has work
    for them.

    Args:
      cores: of this process.
      memory: bytes that this process can still take; None where it is not known.
      source: `packed_bytes` of the training examples.
      batch_size: of a global batch.
    """
    if cores <= MAX_THREADS:
        return 0, ''
    if source is None:
        return 0, 'the data set cannot be pickled for worker processes'
    workers, limit = cores - 1, ''
    if batch_size < workers:
        workers, limit = batch_size, f'a batch has {batch_size} images'
    if memory is not None:
        each, shared = WORKER_BYTES + UNPICKLED * source[0], source[1]
        fitting = max(memory // 2 - shared, 0) // each
        if fitting < workers:
            workers, limit = fitting, f'memory: {memory / GIB:.1f} GiB are available'
    return (workers, limit) if workers > 1 else (0, limit)


def packed_bytes(source: Any) -> tuple[int, int] | None:
    """Returns the bytes of a source that each worker has, and those that all share.

    None for a source that cannot be pickled.
    """
    try:
        own, *shared = pack(source)[0]
    except Exception:  # whatever its parts raise
        return None
    return own, sum(shared)
