"""Data sets that `mae-jax prepare` wrote: the record, what lies beside the shards, and the source.

A directory holds, for each split, `<split>-00003-of-00032.array_record`, and `dataset.json`, which
says what they were made from and how, and lists the shards that are done. A record is

    label            int32, little-endian; -1: none
    length of name   uint32, little-endian, in bytes
    name             UTF-8, such as train/cat/1.jpg: where it was in the source
    image            the bytes of a JPEG, PNG, .npy ... file, to the end
"""

import dataclasses
import json
import math
import os
import re
import struct
from collections.abc import Sequence
from typing import Any

from mae_jax.errors import UserError
from mae_jax.files.limits import read_json, reason, regular_size

FORMAT = 1
MAX_SHARDS = 99_999
MAX_EXAMPLES = 1 << 40
HEADER = struct.Struct('<iI')


def pack(label: int, name: str, image: bytes) -> bytes:
    """A record of an example."""
    encoded = name.encode('utf-8', 'surrogateescape')
    return HEADER.pack(label, len(encoded)) + encoded + image


def unpack(record: bytes) -> dict:
    """The example of a record. Raises ValueError where it is none."""
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
    """One that is done.

    Attributes:
      examples: records in it; without any there is no file.
      bytes: of the file.
      source_bytes: of the images it was made from.
      skipped: images that could not be read.
      compared: images whose crops were compared ...
      train_difference, eval_difference: ... and the sums of what came of it; see `reduce.compare`.
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
    """What `dataset.json` says of a split.

    Attributes:
      identity: of the source.
      class_names: one a label; empty: no labels.
      source_examples: how many the source has.
      shard_examples: how many of them make a shard; the last one may have fewer.
      shards: by number; None: not done.
    """

    identity: str
    class_names: Sequence[str]
    source_examples: int
    shard_examples: int
    shards: list[Shard | None]

    def total(self, field: str) -> float:
        """The sum of a field of `Shard` over those that are done."""
        return sum(getattr(shard, field) for shard in self.shards if shard)


@dataclasses.dataclass
class Contents:
    """What `dataset.json` says.

    Attributes:
      source: what the data set was made from, in words.
      options: that made a difference to the images.
      splits: by name.
    """

    source: str
    options: dict[str, Any]
    splits: dict[str, Split]

    def to_json(self) -> str:
        return json.dumps({'format': FORMAT} | dataclasses.asdict(self), indent=1) + '\n'


def shard_name(split: str, number: int, shards: int) -> str:
    """The file of a shard."""
    return f'{split}-{number:05d}-of-{shards:05d}.array_record'


def read_contents(directory: str | os.PathLike) -> Contents:
    """What `dataset.json` of a directory says.

    Raises:
      UserError: there is none, or it says what cannot be.
    """
    path = os.path.join(directory, 'dataset.json')
    try:
        return _parse(read_json(path))
    except FileNotFoundError as error:
        raise UserError(
            f'{directory} holds no prepared data set: there is no dataset.json in it; write one '
            f'with `mae-jax prepare SRC {directory}`.'
        ) from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f'{path} is damaged ({reason(error)}): restore it from a copy, or prepare the data '
            'set again with --overwrite.'
        ) from error


def _parse(content: Any) -> Contents:
    if content['format'] != FORMAT:
        raise ValueError(f'format {content["format"]!r}, where {FORMAT} is known')
    splits = {name: _parse_split(name, split) for name, split in content['splits'].items()}
    _need(isinstance(content['source'], str) and isinstance(content['options'], dict), 'no source')
    return Contents(content['source'], content['options'], splits)


def _parse_split(name: str, content: dict) -> Split:
    split = Split(**content)
    check_split_name(name)
    _need(isinstance(split.identity, str), f'the identity of {name}')
    _need(all(isinstance(each, str) for each in split.class_names), f'the class names of {name}')
    _need(isinstance(split.shards, list) and len(split.shards) <= MAX_SHARDS, 'too many shards')
    for count in (split.source_examples, split.shard_examples):
        _need(type(count) is int and 0 < count <= MAX_EXAMPLES, f'examples of {name}: {count!r}')
    expected = -(-split.source_examples // split.shard_examples)
    _need(len(split.shards) == expected, f'{name} has {len(split.shards)} shards, not {expected}')
    split.shards = [None if shard is None else Shard(**shard) for shard in split.shards]
    for shard in filter(None, split.shards):
        for value in dataclasses.astuple(shard):
            told = f'a shard of {name} says {value!r}'
            _need(type(value) in (int, float) and 0 <= value < math.inf, told)
        counts = (shard.examples, shard.bytes, shard.skipped, shard.compared)
        _need(all(type(count) is int for count in counts), f'counts of {name}')
        most = shard.examples + shard.skipped
        _need(most <= split.shard_examples, f'a shard of {name} says {most:,} examples')
    return split


def check_split_name(name: str) -> None:
    """Raises ValueError where a split's name cannot begin a file's."""
    _need(re.fullmatch(r'[A-Za-z0-9_]+', name), f'{name!r} is no name of a split')


def _need(condition: Any, told: str) -> None:
    if not condition:
        raise ValueError(told)


def wrong_file(directory: str, name: str, shard: Shard) -> str | None:
    """What keeps the file of a shard from being what `dataset.json` says; None: it is."""
    if not shard.examples:
        return None
    try:
        size = regular_size(os.path.join(directory, name))
    except OSError as error:
        return f'{name} cannot be read ({reason(error)})'
    return None if size == shard.bytes else f'{name} has {size:,} bytes, not {shard.bytes:,}'
