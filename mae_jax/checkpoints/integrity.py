"""Writes and verifies the sizes and CRC-32 checksums of all files of a checkpoint.

Each process lists the files that it has written itself. Process 0 joins these lists, adds what is
left, and writes the list of the checkpoint. To verify it, the processes divide the files.
"""

import contextlib
import errno
import json
import os
import socket
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax
from etils import epath

from mae_jax.errors import UserError
from mae_jax.files.buckets import service_errors
from mae_jax.files.limits import (
    MAX_JSON_BYTES,
    find_irregular,
    is_inside,
    parse_json,
    read_bytes,
    reason,
    regular_size,
)
from mae_jax.runtime.agreement import SHARE_STORAGE, find_unseen, from_first, gather

CHECKSUMS = 'checksums.txt'
# Orbax rewrites these two when it commits, after the checksums are computed. Nothing reads them.
COMMIT_MARKERS = ('_CHECKPOINT_METADATA', 'commit_success.txt')
OWN = ('ocdbt.process_{}', 'array_metadatas/process_{}')
"""What Orbax lets one process write in the directory of the arrays."""
THREADS = 8

Files = dict[str, tuple[int, int]]
"""Name, relative to the directory of the list -> (size, CRC-32)."""


def write_own_checksums(path: epath.Path, process: int) -> None:
    """Lists the files that a process has written below `path`, in a file of its own there."""
    own = [path / name.format(process) for name in OWN]
    own = [each for each in own if each.exists()]
    files = [file for each in own for file in (_walk(each) if each.is_dir() else [each])]
    _write_list(path / _own_list(process), _checksums(path, files))


def find_unseen_files(path: epath.Path, processes: int) -> epath.Path | None:
    """Waits for the files that the processes have listed below `path`; returns one that is missing.

    On a network file system, what others have written may take a while to be seen.
    """
    lists = [path / _own_list(process) for process in range(processes)]
    missing = find_unseen(dict.fromkeys(lists))
    return missing or find_unseen(_sizes(path, _joined(lists)))


def write_checksums(path: epath.Path) -> None:
    """Writes the size and CRC-32 of every file below `path` to a file, and flushes it to disk.

    What processes have listed themselves is not read again; their lists are removed.

    The checksums are to detect accidental damage: CRC-32 detects every single flipped bit and every
    burst of up to 32 bits, at 3 GB/s a core where SHA-256 reaches 1.5 and BLAKE2b 0.7.
    """
    lists = list((path / 'state').glob(_own_list('*')))
    listed = {f'state/{name}': value for name, value in _joined(lists).items()}
    for each in lists:
        each.unlink()
    known = {*listed, CHECKSUMS, *COMMIT_MARKERS}
    rest = [file for file in _walk(path) if str(file.relative_to(path)) not in known]
    _write_list(path / CHECKSUMS, dict(sorted((listed | _checksums(path, rest)).items())))


def find_damage(path: epath.Path) -> str | None:
    """Returns which file of a checkpoint differs from what was written, and how; None if none does.

    A checkpoint may come from somebody else: links out of its directory count as damage. Every
    process of a run must call it: each reads its share of the files, and all return the same.

    Raises:
      UserError: a process does not see a file that process 0 sees.
    """
    problem, files = from_first(lambda: _find_missing(path))
    if problem:
        return problem
    process, count = jax.process_index(), jax.process_count()
    unseen = process and find_unseen(_sizes(path, files))
    try:
        if unseen:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(unseen))
        problem, unread = _find_difference(path, files, _share(files, process, count)), None
    except OSError as error:
        name = os.path.relpath(error.filename or path, path)
        problem = f'{name} is missing or cannot be read'
        reader = f'process {process} on {socket.gethostname()}'
        unread = f'{name} is not seen by {reader} ({reason(error)})'
    found = gather([problem, unread])
    if unread := next((unread for _, unread in found[1:] if unread), None):
        raise UserError(
            f'The checkpoint {path} is whole for process 0, but {unread}. {SHARE_STORAGE}'
        )
    return next((problem for problem, _ in found if problem), None)


def listed_files(path: epath.Path) -> Files:
    """Reads the list of checksums: file name -> (size, CRC-32).

    Raises:
      ValueError: the list is missing or damaged, or names a file outside of the directory.
    """
    return _read_list(path / CHECKSUMS)


def _find_missing(path: epath.Path) -> tuple[str | None, Files]:
    """Returns (the first problem that shows without reading the files, what is listed)."""
    if irregular := find_irregular(path):
        return f'{irregular} is a link or a special file: replace it by a copy of its target', {}
    try:
        files = listed_files(path)
    except ValueError as error:
        return f'{error}', {}
    with ThreadPoolExecutor(THREADS) as pool:
        problems = pool.map(lambda name: _size_difference(path, name, files[name][0]), files)
        return next((problem for problem in problems if problem), None), files


def _size_difference(path: epath.Path, name: str, recorded: int) -> str | None:
    try:
        size = regular_size(path / name)
    except OSError:
        return f'{name} is missing or cannot be read'
    return None if size == recorded else f'{name} has {size} bytes instead of {recorded}'


def _find_difference(path: epath.Path, files: Files, names: list[str]) -> str | None:
    """Reads files, and returns how the first that differs does; raises OSError."""
    actual = _checksums(path, [path / name for name in names])
    return next(
        (
            f'{name} has another checksum than when it was written'
            for name, value in actual.items()
            if value != tuple(files[name])
        ),
        None,
    )


def _share(files: Files, process: int, count: int) -> list[str]:
    """Returns the names that one of `count` processes reads, of about equally many bytes each."""
    loads = [0] * count
    share = []
    for name, (size, _) in sorted(files.items(), key=lambda item: (-item[1][0], item[0])):
        least = loads.index(min(loads))
        loads[least] += size
        if least == process:
            share.append(name)
    return share


def _sizes(path: epath.Path, files: Files) -> dict[epath.Path, int]:
    return {path / name: size for name, (size, _) in files.items()}


def _own_list(process: int | str) -> str:
    return f'checksums.{process}.txt'


def _joined(lists: Iterable[epath.Path]) -> Files:
    joined: Files = {}
    with ThreadPoolExecutor(THREADS) as pool:
        for each in pool.map(_read_list, lists):
            joined |= each
    return joined


def _checksums(path: epath.Path, files: list[epath.Path]) -> Files:
    with ThreadPoolExecutor(THREADS) as pool:  # zlib computes without Python's lock
        values = pool.map(_checksum, files)
        return {str(f.relative_to(path)): value for f, value in zip(files, values, strict=True)}


def _write_list(path: epath.Path, files: Files) -> None:
    listed = json.dumps(files, indent=0).encode()
    with path.open('wb') as file:
        file.write(b'%08x\n%b' % (zlib.crc32(listed), listed))
        file.flush()
        with contextlib.suppress(AttributeError, OSError):  # not a local file
            os.fsync(file.fileno())


def _read_list(path: epath.Path) -> Files:
    try:
        crc, _, listed = read_bytes(path, MAX_JSON_BYTES).partition(b'\n')
    except OSError as error:
        raise ValueError(f'{path.name} is missing, or cannot be read') from error
    if crc != b'%08x' % zlib.crc32(listed):
        raise ValueError(f'{path.name} has changed since it was written')
    try:
        files = {name: (int(size), int(crc)) for name, (size, crc) in parse_json(listed).items()}
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f'{path.name} is not a list of files') from error
    if outside := [name for name in files if not is_inside(name)]:
        raise ValueError(f'{path.name} names {outside[0]!r}, which is not in the checkpoint')
    return files


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
