"""The files of a prepared data set: its records, the names of its shards, and `dataset.json`.

A directory holds shards, `<split>-00003-of-00032.array_record`, and `dataset.json`: from which
source and with which options they were made, and which of them are complete. A record is

    label            int32, little-endian; -1: none
    length of name   uint32, little-endian, in bytes
    name             UTF-8, such as train/cat/1.jpg: the path in the source
    image            the bytes of a JPEG, PNG, .npy ... file, to the end

`prepare/` writes these files and `prepared.py` reads them.
"""

import dataclasses
import json
import math
import os
import re
import struct
from collections.abc import Sequence
from typing import Any

from mae_jax.data.sources.protocol import Example
from mae_jax.errors import UserError
from mae_jax.files.buckets import is_remote
from mae_jax.files.limits import read_json, reason, regular_size

FORMAT = 1
MAX_SHARDS = 99_999
MAX_EXAMPLES = 1 << 40
HEADER = struct.Struct('<iI')


def pack(label: int, name: str, image: bytes) -> bytes:
    """Returns the record of an example."""
    encoded = name.encode('utf-8', 'surrogateescape')
    return HEADER.pack(label, len(encoded)) + encoded + image


def unpack(record: bytes) -> Example:
    """Returns the example of a record.

    Raises:
      ValueError: the bytes are not such a record.
    """
    if len(record) < HEADER.size:
        raise ValueError('too short for a record')
    label, length = HEADER.unpack_from(record)
    start = HEADER.size + length
    if start > len(record):
        raise ValueError('not one of our records')
    name = record[HEADER.size : start].decode('utf-8', 'surrogateescape')
    return {'image': record[start:], 'label': label, 'name': name}


@dataclasses.dataclass(frozen=True)
class Shard:
    """A shard that is complete.

    Attributes:
      examples: its records; where there are none it has no file.
      bytes: the size of its file.
      source_bytes: the size of the images it was made from.
      skipped: images left out because they could not be read.
      compared: images whose crops were compared with those of the original.
      train_difference, eval_difference: sums of their differences, see `prepare.reduce.compare`.
    """

    examples: int = 0
    bytes: int = 0
    source_bytes: int = 0
    skipped: int = 0
    compared: int = 0
    train_difference: float = 0.0
    eval_difference: float = 0.0


@dataclasses.dataclass
class Split:
    """The entry of a split in `dataset.json`.

    Attributes:
      identity: of the source.
      class_names: the name of each class, in the order of the labels; empty where there are none.
      source_examples: the number of examples of the source.
      shard_examples: how many of them make a shard; the last shard may have fewer.
      shards: in their order; None for a shard that is not complete.
    """

    identity: str
    class_names: Sequence[str]
    source_examples: int
    shard_examples: int
    shards: list[Shard | None]

    def total(self, field: str) -> float:
        """Returns the sum of a field of `Shard` over the complete shards."""
        return sum(getattr(shard, field) for shard in self.shards if shard)


@dataclasses.dataclass
class Contents:
    """The content of `dataset.json`.

    Attributes:
      source: the name of the folder or of the TFDS data set it was made from.
      options: short_side, quality and channels; see `prepare.reduce.reduce_image`.
      splits: by name.
    """

    source: str
    options: dict[str, Any]
    splits: dict[str, Split]

    def to_json(self) -> str:
        return json.dumps({'format': FORMAT} | dataclasses.asdict(self), indent=1) + '\n'


def shard_name(split: str, number: int, shards: int) -> str:
    """Returns the file name of a shard."""
    return f'{split}-{number:05d}-of-{shards:05d}.array_record'


def read_contents(directory: str | os.PathLike) -> Contents:
    """Reads the `dataset.json` of a directory.

    Raises:
      UserError: it does not exist, or its content is not valid.
    """
    path = os.path.join(directory, 'dataset.json')
    try:
        return _parse(read_json(path))
    except FileNotFoundError as error:
        command = f'`mae-jax prepare SRC {directory}`'
        if is_remote(directory):
            command = '`mae-jax prepare SRC DIR`, and copy it there'
        raise UserError(
            f'{directory} is not a prepared data set, for it has no dataset.json: write one with '
            f'{command}.'
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f'{path} is damaged ({reason(error)}): restore it from a copy, or prepare the data '
            'set again with --overwrite.'
        ) from error


def _parse(content: Any) -> Contents:
    if content['format'] != FORMAT:
        raise ValueError(f'format {content["format"]!r} is not {FORMAT}')
    splits = {name: _parse_split(name, split) for name, split in content['splits'].items()}
    _require(
        isinstance(content['source'], str) and isinstance(content['options'], dict), 'no source'
    )
    return Contents(content['source'], content['options'], splits)


def _parse_split(name: str, content: dict) -> Split:
    split = Split(**content)
    check_split_name(name)
    _require(isinstance(split.identity, str), f'the identity of {name}')
    _require(all(isinstance(each, str) for each in split.class_names), f'the class names of {name}')
    _require(isinstance(split.shards, list) and len(split.shards) <= MAX_SHARDS, 'too many shards')
    for count in (split.source_examples, split.shard_examples):
        _require(type(count) is int and 0 < count <= MAX_EXAMPLES, f'examples of {name}: {count!r}')
    expected = -(-split.source_examples // split.shard_examples)
    _require(
        len(split.shards) == expected, f'{name} has {len(split.shards)} shards, not {expected}'
    )
    split.shards = [None if shard is None else Shard(**shard) for shard in split.shards]
    for shard in filter(None, split.shards):
        for value in dataclasses.astuple(shard):
            is_count = type(value) in (int, float) and 0 <= value < math.inf
            _require(is_count, f'a shard of {name} has {value!r}')
        counts = (shard.examples, shard.bytes, shard.skipped, shard.compared)
        _require(all(type(count) is int for count in counts), f'counts of {name}')
        used = shard.examples + shard.skipped
        _require(used <= split.shard_examples, f'a shard of {name} has {used:,} examples')
    return split


def check_split_name(name: str) -> None:
    """Checks that the name of a split can begin the name of a file.

    Raises:
      ValueError: it has characters other than ASCII letters, digits and underscores.
    """
    _require(re.fullmatch(r'[A-Za-z0-9_]+', name), f'{name!r} is not the name of a split')


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise ValueError(message)


def shard_problem(directory: str, name: str, shard: Shard) -> str | None:
    """Describes what is wrong with the file of a shard; None where it has the size it should."""
    if not shard.examples:
        return None
    try:
        size = regular_size(os.path.join(directory, name))
    except OSError as error:
        return f'{name} cannot be read ({reason(error)})'
    return None if size == shard.bytes else f'{name} has {size:,} bytes, not {shard.bytes:,}'
