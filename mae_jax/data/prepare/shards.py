"""Writes shards of a prepared data set; the file of each gets its name when it is complete."""

import collections
import contextlib
import itertools
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import NamedTuple

from array_record.python.array_record_module import ArrayRecordWriter

from mae_jax.data.images.decode import BadImage
from mae_jax.data.prepare.reduce import compare, reduce_image
from mae_jax.data.sources.folder import FolderSource
from mae_jax.data.sources.prepared_format import Shard, pack, shard_name
from mae_jax.data.sources.protocol import Source
from mae_jax.errors import UserError, brief

WRITER_OPTIONS = 'group_size:1,uncompressed'  # for random access; JPEGs do not compress
COMPARED_IMAGES = 256
"""How many images of a training split are compared with their originals."""
TEMPORARY = '.unfinished-'
"""Prefix of a file that is being written."""


class ShardRange(NamedTuple):
    """A shard to write: examples start ... stop - 1 of a split of the source."""

    split: str
    number: int
    shards: int
    """How many shards the split has."""
    start: int
    stop: int

    @property
    def file(self) -> str:
        """The name of its file."""
        return shard_name(self.split, self.number, self.shards)


def write_shard(
    destination: str,
    sources: dict[str, Source],
    options: dict[str, float],
    on_error: str,
    planned: ShardRange,
    report: Callable[[str | None], None],
) -> Shard:
    """Writes one shard.

    Args:
      destination: the directory.
      sources: by split.
      options: the arguments of `reduce_image` except for the record.
      on_error: 'raise', or 'skip' to leave out images that cannot be read.
      planned: the shard.
      report: called after each image, with a message if it is left out, else with None.

    Raises:
      UserError: an image cannot be read, is not encoded, or the file cannot be written.
    """
    source = sources[planned.split]
    samples = min(COMPARED_IMAGES, len(source)) if planned.split == 'train' else 0
    compared = {len(source) * i // samples for i in range(samples)}
    sums = collections.Counter()
    with complete_file(destination, planned.file) as path:
        with contextlib.closing(ArrayRecordWriter(path, WRITER_OPTIONS)) as writer:
            for index in range(planned.start, planned.stop):
                try:
                    record = _read(source, index)
                    reduced = record | {'image': reduce_image(record, **options)}
                except BadImage as error:
                    if on_error == 'raise':
                        remedy = 'Repair or remove it, or give --on_error=skip.'
                        raise UserError(f'{error} {remedy}') from error
                    sums['skipped'] += 1
                    report(f'left out: {error}')
                    continue
                name = _stored_name(source, planned.split, index, record['name'])
                writer.write(pack(record['label'], name, reduced['image']))
                sums['examples'] += 1
                sums['source_bytes'] += len(record['image'])
                if index in compared:
                    sums.update(_compare(record, reduced, options, index))
                report(None)
        sums['bytes'] = os.path.getsize(path)
    return Shard(**sums)


def write_shards(
    missing: list[ShardRange], write: Callable[..., Shard], workers: int, report: Callable
) -> Iterator[tuple[ShardRange, Shard]]:
    """Writes shards in worker processes and yields each when it is complete.

    Args:
      missing: the shards to write.
      write: `write_shard` with all but its last two arguments; picklable if workers > 1.
      workers: the number of processes; with 1 this process does the work.
      report: see `write_shard`; called in this process.

    Raises:
      UserError: of `write_shard`, or a worker process has ended.
    """
    if workers <= 1:
        for planned in missing:
            yield planned, write(planned, report)
        return
    context = multiprocessing.get_context('spawn')  # fork is unsafe beside JAX's threads
    waiting, at_work, processes = iter(missing), {}, {}
    try:
        for _ in range(workers):
            link, worker_end = context.Pipe()
            process = context.Process(target=_work, args=(worker_end, write), daemon=True)
            process.start()
            processes[link] = process
            worker_end.close()
            with _explained(process):
                _assign(link, waiting, at_work)
        while at_work:
            for link in connection.wait(list(at_work)):
                with _explained(processes[link]):
                    message = link.recv()
                if isinstance(message, UserError):
                    raise message
                if isinstance(message, Shard):
                    yield at_work.pop(link), message
                    with _explained(processes[link]):
                        _assign(link, waiting, at_work)
                else:
                    report(message)
    finally:
        for process in processes.values():
            process.kill()
            process.join()


@contextlib.contextmanager
def _explained(process: multiprocessing.Process) -> Iterator[None]:
    """Raises a UserError where the process at the other end of a link has ended."""
    try:
        yield
    except (EOFError, ConnectionError):
        process.join()
        raise UserError(
            f'A worker process ended with exit status {process.exitcode}: if memory ran out, lower '
            '--workers; the same command goes on.'
        ) from None


def _assign(link: connection.Connection, waiting: Iterator[ShardRange], at_work: dict) -> None:
    """Sends the next shard, if there is one left, to the process at the other end."""
    for planned in itertools.islice(waiting, 1):
        link.send(planned)
        at_work[link] = planned


def _work(link: connection.Connection, write: Callable[..., Shard]) -> None:
    """Writes the shards that the parent sends, until this process is killed or the parent ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent handles them and ends its workers
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            planned = link.recv()
            try:
                link.send(write(planned, link.send))
            except UserError as error:
                link.send(UserError(str(error)))


def _read(source: Source, index: int) -> dict:
    try:
        record = source[index]
    except RuntimeError as error:  # of ArrayRecord, for a damaged shard of TFDS
        raise BadImage(f'Example {index} cannot be read: {brief(error)}.') from error
    if not isinstance(record['image'], bytes):
        raise UserError(f'{record["name"]} is not an encoded image: it cannot be prepared.')
    return record


def _stored_name(source: Source, split: str, index: int, name: str) -> str:
    """Returns the name to store, which for a file does not depend on where the folder is."""
    return f'{split}/{source.files[index]}' if isinstance(source, FolderSource) else name


def _compare(record: dict, reduced: dict, options: dict, index: int) -> dict[str, float]:
    """Compares crops of two versions of an image; empty where that gives no finite numbers."""
    with contextlib.suppress(BadImage):
        differences = compare(record, reduced, options['channels'], index, options.get('nodata'))
        if all(map(math.isfinite, differences)):
            train, evaluation = differences
            return {'compared': 1, 'train_difference': train, 'eval_difference': evaluation}
    return {}


@contextlib.contextmanager
def complete_file(directory: str, name: str) -> Iterator[str]:
    """Gives a temporary path to write, which is renamed when it is complete and on the disk.

    Raises:
      UserError: the file cannot be written.
    """
    path = os.path.join(directory, TEMPORARY + name)
    try:
        yield path
        _sync(path)
        os.replace(path, os.path.join(directory, name))
        _sync(directory)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f'{os.path.join(directory, name)} cannot be written ({brief(error).split(";")[0]}): '
            'make room or make it writable, and run the same command to go on.'
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
