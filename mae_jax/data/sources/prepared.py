"""Data sets that `mae-jax prepare` wrote: the record, what lies beside the shards, and the source.

A directory holds, for each split, `<split>-00003-of-00032.array_record`, and `dataset.json`, which
says what they were made from and how, and lists the shards that are done. A record is

    label            int32, little-endian; -1: none
    length of name   uint32, little-endian, in bytes
    name             UTF-8, such as train/cat/1.jpg: where it was in the source
    image            the bytes of a JPEG, PNG, .npy ... file, to the end
"""

import bisect
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Sequence
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader

from mae_jax.data.images.decode import BadImage
from mae_jax.data.sources.prepared_format import (
    Shard,
    read_contents,
    shard_name,
    unpack,
    wrong_file,
)
from mae_jax.data.sources.splits import existing_split
from mae_jax.errors import UserError, brief

READER_OPTIONS = 'readahead_buffer_size:0,max_parallelism:0'  # nothing is read ahead at random
READER_BUFFER = 32 << 10


class PreparedSource:
    """A split of a prepared data set; see `sources`. A shard is opened when it is first read.

    Raises (as do its items):
      UserError: it was not prepared, not to its end or not with these `channels` (None: any), or
        its shards are not what they should be.
      BadImage: a record is damaged.
    """

    def __init__(self, path: str | None, split: str, channels: int | None = None):
        if not path:
            raise UserError(
                "dataset.name='prepared' needs dataset.path, what `mae-jax prepare` wrote."
            )
        path = os.fspath(path)
        contents = read_contents(path)
        _check_channels(path, contents.options, channels)
        split = existing_split(path, split, contents.splits)
        found = contents.splits[split]
        self.class_names = list(found.class_names)
        self.num_classes = len(self.class_names)
        _check_shards(path, split, found.shards)
        self._shards = [
            (os.path.join(path, shard_name(split, number, len(found.shards))), shard.examples)
            for number, shard in enumerate(found.shards)
            if shard.examples
        ]
        self._ends = list(itertools.accumulate(examples for _, examples in self._shards))
        counts = [shard.examples for shard in found.shards]
        made = [contents.options, found.identity, self.class_names, counts]
        digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]
        self.identity = f'prepared:{len(self)}:{digest}'
        self.__setstate__({})

    def __getstate__(self) -> dict:
        return {key: x for key, x in vars(self).items() if key not in ('_readers', '_opening')}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        self._readers = [None] * len(self._shards)
        self._opening = threading.Lock()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> dict:
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
        found = reader.num_records()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f'{file} cannot be opened: {brief(error)}.') from error
    if found != examples:
        raise UserError(
            f'{file} is damaged: it has {found} records, not {examples}; delete it and run the '
            '`mae-jax prepare` that wrote it again.'
        )
    return reader


def _check_channels(path: str, options: dict[str, Any], wanted: int | None) -> None:
    """What was reduced to grey, say, has no colours to train on."""
    made = options.get('channels')
    if None not in (made, wanted) and made != wanted:
        raise UserError(
            f'dataset.channels={wanted}, but {path} was prepared with {made}: set '
            f'dataset.channels={made}, or prepare the data set with --channels={wanted}.'
        )


def _check_shards(path: str, split: str, shards: Sequence[Shard | None]) -> None:
    """All are done, and there, and whole."""
    again = 'run the `mae-jax prepare` that wrote it again, which goes on where it stopped'
    if missing := shards.count(None):
        raise UserError(
            f'{path} is incomplete: {missing} of {len(shards)} shards of {split} are not written; '
            f'{again}.'
        )
    for number, shard in enumerate(shards):
        if told := wrong_file(path, shard_name(split, number, len(shards)), shard):
            raise UserError(f'{path} is incomplete: {told}; {again}.')
