"""The source of a data set that `mae-jax prepare` wrote; `prepared_format.py` defines its files."""

import bisect
import functools
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader

from mae_jax.data.images.decode import BadImage
from mae_jax.data.sources.prepared_format import (
    Shard,
    read_contents,
    shard_name,
    shard_problem,
    unpack,
)
from mae_jax.data.sources.protocol import Example
from mae_jax.data.sources.splits import existing_split
from mae_jax.errors import UserError, brief
from mae_jax.files.buckets import as_path

READER_OPTIONS = 'readahead_buffer_size:0,max_parallelism:0'  # reads are at random positions
READER_BUFFER = 32 << 10  # bytes
CHECKS = 32
"""Shards whose sizes are looked up at once."""


class PreparedSource:
    """A split of a prepared data set. Each shard is opened when it is first read.

    Raises (from an item):
      UserError: a shard cannot be opened, or has another number of records.
      BadImage: a record is damaged.
    """

    def __init__(self, path: str | None, split: str, channels: int | None = None):
        """Reads `dataset.json` and checks that every shard of the split is complete.

        Args:
          path: the directory that `mae-jax prepare` wrote.
          split: 'train', or an evaluation split under any of its names.
          channels: those that it must have been prepared with; None for any.

        Raises:
          UserError: there is no such data set or split, it is incomplete or damaged, or it was
            prepared with other channels.
        """
        if not path:
            raise UserError(
                "dataset.name='prepared' needs dataset.path, the directory that `mae-jax prepare` "
                'wrote.'
            )
        path = os.fspath(as_path(path))
        contents = read_contents(path)
        _check_channels(path, contents.options, channels)
        split = existing_split(path, split, contents.splits)
        entry = contents.splits[split]
        self.class_names = list(entry.class_names)
        self.num_classes = len(self.class_names)
        _check_shards(path, split, entry.shards)
        self._shards = [
            (os.path.join(path, shard_name(split, number, len(entry.shards))), shard.examples)
            for number, shard in enumerate(entry.shards)
            if shard.examples
        ]
        self._ends = list(itertools.accumulate(examples for _, examples in self._shards))
        counts = [shard.examples for shard in entry.shards]
        content = [contents.options, entry.identity, self.class_names, counts]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
        self.identity = f'prepared:{len(self)}:{digest}'
        self.__setstate__({})

    # Open files and locks cannot be pickled: a copy opens its own.
    def __getstate__(self) -> dict:
        return {key: x for key, x in vars(self).items() if key not in ('_readers', '_opening')}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._readers = [None] * len(self._shards)
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f'{index} of {len(self)} examples')
        number = bisect.bisect_right(self._ends, index)
        file, examples = self._shards[number]
        position = index - self._ends[number] + examples
        reader = self._readers[number] or self._open(number)
        try:
            return unpack(reader.read([position])[0])
        except (RuntimeError, ValueError, IndexError) as error:
            raise BadImage(
                f'Record {position} of {file} is damaged ({brief(error)}): delete the file and run '
                'the `mae-jax prepare` that wrote it again.'
            ) from error

    def _open(self, number: int) -> ArrayRecordReader:
        with self._opening:
            if not self._readers[number]:
                self._readers[number] = _open_shard(*self._shards[number])
            return self._readers[number]


def _open_shard(file: str, examples: int) -> ArrayRecordReader:
    try:
        reader = ArrayRecordReader(file, READER_OPTIONS, file_reader_buffer_size=READER_BUFFER)
        records = reader.num_records()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f'{file} cannot be opened: {brief(error)}.') from error
    if records != examples:
        raise UserError(
            f'{file} is damaged: it has {records} records, not {examples}; delete it and run the '
            '`mae-jax prepare` that wrote it again.'
        )
    return reader


def _check_channels(path: str, options: dict[str, Any], channels: int | None) -> None:
    """Checks that images were not prepared as grey, say, where a run needs colours."""
    prepared = options.get('channels')
    if None not in (prepared, channels) and prepared != channels:
        raise UserError(
            f'dataset.channels={channels}, but {path} was prepared with {prepared}: set '
            f'dataset.channels={prepared}, or prepare the data set with --channels={channels}.'
        )


def _check_shards(path: str, split: str, shards: Sequence[Shard | None]) -> None:
    """Checks that every shard of a split has been written and has a file of the right size."""
    again = 'run the `mae-jax prepare` that wrote it again, which goes on where it stopped'
    if missing := shards.count(None):
        raise UserError(
            f'{path} is incomplete: {missing} of {len(shards)} shards of {split} are not written; '
            f'{again}.'
        )
    names = [shard_name(split, number, len(shards)) for number in range(len(shards))]
    with ThreadPoolExecutor(CHECKS) as pool:  # a bucket takes its time to answer, for each
        problems = list(pool.map(functools.partial(shard_problem, path), names, shards))
    for problem in filter(None, problems):
        raise UserError(f'{path} is incomplete: {problem}; {again}.')


def prepared_source(
    split: str, *, path: str | None, channels: int | None, **unused
) -> PreparedSource:
    """Returns a `PreparedSource`; `make_source` calls it."""
    return PreparedSource(path, split, channels)
