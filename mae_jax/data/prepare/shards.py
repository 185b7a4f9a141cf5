"""Shards of a prepared data set, written: each appears under its name when it is whole."""

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
from mae_jax.errors import UserError, brief

WRITER_OPTIONS = 'group_size:1,uncompressed'  # each record by itself; JPEGs do not compress
COMPARED_IMAGES = 256
TEMPORARY = '.unfinished-'


class Task(NamedTuple):
    """A shard to write: which of how many, of which examples of the source."""

    split: str
    number: int
    shards: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        return shard_name(self.split, self.number, self.shards)


def write_shard(
    destination: str,
    sources: dict,
    options: dict[str, int],
    on_error: str,
    task: Task,
    report: Callable[[str | None], None],
) -> Shard:
    """Writes one shard.

    Args:
      destination, sources, options, on_error: see `prepare`.
      task: which one.
      report: called after each image, with a sentence if it is left out.
    """
    source = sources[task.split]
    samples = min(COMPARED_IMAGES, len(source)) if task.split == 'train' else 0
    compared = {len(source) * i // samples for i in range(samples)}
    sums = collections.Counter()
    with whole_file(destination, task.file) as path:
        with contextlib.closing(ArrayRecordWriter(path, WRITER_OPTIONS)) as writer:
            for index in range(task.start, task.stop):
                try:
                    record = _read(source, index)
                    reduced = record | {'image': reduce_image(record, **options)}
                except BadImage as error:
                    if on_error == 'raise':
                        hint = 'Mend or remove it, or give --on_error=skip.'
                        raise UserError(f'{error} {hint}') from error
                    sums['skipped'] += 1
                    report(f'left out: {error}')
                    continue
                name = _stored_name(source, task.split, index, record['name'])
                writer.write(pack(record['label'], name, reduced['image']))
                sums['examples'] += 1
                sums['source_bytes'] += len(record['image'])
                if index in compared:
                    sums.update(_compare(record, reduced, options['channels'], index))
                report(None)
        sums['bytes'] = os.path.getsize(path)
    return Shard(**sums)


def write_shards(
    tasks: list[Task], write: Callable[..., Shard], workers: int, report: Callable
) -> Iterator[tuple[Task, Shard]]:
    """Each as it is done; by this process where there is one worker.

    Args:
      tasks: the shards.
      write: `write_shard` but for its last two arguments.
      workers: processes.
      report: see `write_shard`; called in this process.
    """
    if workers <= 1:
        for task in tasks:
            yield task, write(task, report)
        return
    context = multiprocessing.get_context('spawn')  # JAX's threads, in a notebook, do not fork
    waiting, at_work, processes = iter(tasks), {}, {}
    try:
        for _ in range(workers):
            link, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, write), daemon=True)
            process.start()
            processes[link] = process
            theirs.close()
            _assign(link, waiting, at_work)
        while at_work:
            for link in connection.wait(list(at_work)):
                try:
                    message = link.recv()
                except (EOFError, ConnectionError):
                    process = processes[link]
                    process.join()
                    raise UserError(
                        f'A worker process ended with exit status {process.exitcode}: if memory '
                        'ran out, lower --workers; the same command goes on.'
                    ) from None
                if isinstance(message, UserError):
                    raise message
                if isinstance(message, Shard):
                    yield at_work.pop(link), message
                    _assign(link, waiting, at_work)
                else:
                    report(message)
    finally:
        for process in processes.values():
            process.kill()
            process.join()


def _assign(link: connection.Connection, waiting: Iterator[Task], at_work: dict) -> None:
    """The next shard, if there is one, to the process at the other end."""
    for task in itertools.islice(waiting, 1):
        link.send(task)
        at_work[link] = task


def _work(link: connection.Connection, write: Callable[..., Shard]) -> None:
    """What a worker process does, until it is killed or its parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # for the parent, which then ends this one
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            task = link.recv()
            try:
                link.send(write(task, link.send))
            except UserError as error:
                link.send(UserError(str(error)))


def _read(source, index: int) -> dict:
    try:
        return source[index]
    except RuntimeError as error:  # ArrayRecord's, of a damaged shard of TFDS
        raise BadImage(f'Example {index} cannot be read: {brief(error)}.') from error


def _stored_name(source, split: str, index: int, name: str) -> str:
    """What a message calls the image: without the folder that the source happens to be in."""
    return f'{split}/{source.files[index]}' if isinstance(source, FolderSource) else name


def _compare(record: dict, reduced: dict, channels: int, index: int) -> dict[str, float]:
    """Nothing where a crop cannot be made, or of numbers that are not finite."""
    with contextlib.suppress(BadImage):
        differences = compare(record, reduced, channels, index)
        if all(map(math.isfinite, differences)):
            train, evaluation = differences
            return {'compared': 1, 'train_difference': train, 'eval_difference': evaluation}
    return {}


@contextlib.contextmanager
def whole_file(directory: str, name: str) -> Iterator[str]:
    """Within it, a path to write; after it, the file is there under its name, and on the disk."""
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
