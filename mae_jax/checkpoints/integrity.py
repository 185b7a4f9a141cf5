"""A list of every file of a directory with its size and CRC-32, written once, held to later."""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from mae_jax.files.limits import (
    MAX_JSON_BYTES,
    parse_json,
    read_bytes,
    regular_size,
    strange_entry,
    within,
)

CHECKSUMS = 'checksums.txt'
# Orbax rewrites these two as it commits, after the checksums are taken. Nothing here reads them.
COMMIT_MARKERS = ('_CHECKPOINT_METADATA', 'commit_success.txt')


def write_checksums(path: epath.Path) -> None:
    """Records size and CRC-32 of every file under `path`, durably.

    CRC-32 because the enemy is accident: it notices every single flipped bit and every burst
    of up to 32, and runs at 3 GB/s a core where SHA-256 does 1.5 and BLAKE2b 0.7.
    """
    files = {str(file.relative_to(path)): _checksum(file) for file in _walk(path)}
    for name in (CHECKSUMS, *COMMIT_MARKERS):
        files.pop(name, None)
    listed = json.dumps(files, indent=0).encode()
    with (path / CHECKSUMS).open('wb') as file:
        file.write(b'%08x\n%b' % (zlib.crc32(listed), listed))
        file.flush()
        with contextlib.suppress(AttributeError, OSError):  # not a file of this machine
            os.fsync(file.fileno())


def damage(path: epath.Path) -> str | None:
    """Says which file of a checkpoint is not as it was written, and how. None for a whole one.

    A checkpoint may be somebody else's: what leads out of its directory is damage too.
    """
    if strange := strange_entry(path):
        return f'{strange} is a link, or no file at all: copy what it stands for in its place'
    try:
        files = listed_files(path)
    except ValueError as error:
        return f'{error}'
    with ThreadPoolExecutor(8) as pool:
        problems = pool.map(lambda name: _difference(path, name, files[name]), files)
        return next((problem for problem in problems if problem), None)


def listed_files(path: epath.Path) -> dict[str, tuple[int, int]]:
    """Name -> (size, CRC-32) as they were written.

    Raises:
      ValueError: the list is missing or damaged, or names a file that is not in the directory.
    """
    try:
        crc, _, listed = read_bytes(path / CHECKSUMS, MAX_JSON_BYTES).partition(b'\n')
    except OSError as error:
        raise ValueError(f'{CHECKSUMS} is missing, or cannot be read') from error
    if crc != b'%08x' % zlib.crc32(listed):
        raise ValueError(f'{CHECKSUMS} is not as it was written')
    try:
        files = {name: (int(size), int(crc)) for name, (size, crc) in parse_json(listed).items()}
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f'{CHECKSUMS} is no list of files') from error
    if outside := [name for name in files if not within(name)]:
        raise ValueError(f'{CHECKSUMS} names {outside[0]!r}, which is no file of the checkpoint')
    return files


def _difference(path: epath.Path, name: str, recorded: tuple[int, int]) -> str | None:
    try:
        regular_size(path / name)
        size, crc = _checksum(path / name)
    except OSError:
        return f'{name} is missing or cannot be read'
    if size != recorded[0]:
        return f'{name} has {size} bytes instead of {recorded[0]}'
    return None if crc == recorded[1] else f'{name} has another checksum than when it was written'


def _checksum(path: epath.Path) -> tuple[int, int]:
    size, crc = 0, 0
    with path.open('rb') as file:
        while chunk := file.read(1 << 20):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc


def _walk(path: epath.Path) -> Iterator[epath.Path]:
    for child in sorted(path.iterdir()):
        if child.is_dir():
            yield from _walk(child)
        else:
            yield child
