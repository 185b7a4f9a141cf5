"""Writes and verifies the sizes and CRC-32 checksums of all files of a checkpoint."""

import contextlib
import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from mae_jax.files.buckets import service_errors
from mae_jax.files.limits import (
    MAX_JSON_BYTES,
    find_irregular,
    is_inside,
    parse_json,
    read_bytes,
    regular_size,
)

CHECKSUMS = 'checksums.txt'
# Orbax rewrites these two when it commits, after the checksums are computed. Nothing reads them.
COMMIT_MARKERS = ('_CHECKPOINT_METADATA', 'commit_success.txt')


def write_checksums(path: epath.Path) -> None:
    """Writes the size and CRC-32 of every file below `path` to a file, and flushes it to disk.

    The checksums are to detect accidental damage: CRC-32 detects every single flipped bit and every
    burst of up to 32 bits, at 3 GB/s a core where SHA-256 reaches 1.5 and BLAKE2b 0.7.
    """
    files = {str(file.relative_to(path)): _checksum(file) for file in _walk(path)}
    for name in (CHECKSUMS, *COMMIT_MARKERS):
        files.pop(name, None)
    listed = json.dumps(files, indent=0).encode()
    with (path / CHECKSUMS).open('wb') as file:
        file.write(b'%08x\n%b' % (zlib.crc32(listed), listed))
        file.flush()
        with contextlib.suppress(AttributeError, OSError):  # not a local file
            os.fsync(file.fileno())


def find_damage(path: epath.Path) -> str | None:
    """Returns which file of a checkpoint differs from what was written, and how; None if none does.

    A checkpoint may come from somebody else: links out of its directory count as damage.
    """
    if irregular := find_irregular(path):
        return f'{irregular} is a link or a special file: replace it by a copy of its target'
    try:
        files = listed_files(path)
    except ValueError as error:
        return f'{error}'
    with ThreadPoolExecutor(8) as pool:
        problems = pool.map(lambda name: _difference(path, name, files[name]), files)
        return next((problem for problem in problems if problem), None)


def listed_files(path: epath.Path) -> dict[str, tuple[int, int]]:
    """Reads the list of checksums: file name -> (size, CRC-32).

    Raises:
      ValueError: the list is missing or damaged, or names a file outside of the directory.
    """
    try:
        crc, _, listed = read_bytes(path / CHECKSUMS, MAX_JSON_BYTES).partition(b'\n')
    except OSError as error:
        raise ValueError(f'{CHECKSUMS} is missing, or cannot be read') from error
    if crc != b'%08x' % zlib.crc32(listed):
        raise ValueError(f'{CHECKSUMS} has changed since it was written')
    try:
        files = {name: (int(size), int(crc)) for name, (size, crc) in parse_json(listed).items()}
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f'{CHECKSUMS} is not a list of files') from error
    if outside := [name for name in files if not is_inside(name)]:
        raise ValueError(f'{CHECKSUMS} names {outside[0]!r}, which is not in the checkpoint')
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
    with service_errors(path), path.open('rb') as file:
        while chunk := file.read(1 << 20):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc


def _walk(path: epath.Path) -> Iterator[epath.Path]:
    for child in sorted(path.iterdir()):
        if child.is_dir():
            yield from _walk(child)
        else:
            yield child
