"""How much a file of somebody else may ask for, and the checks that come before anything is read.

Weights and what lies beside them are data: they may be wrong, or made to do harm. The bounds of
images are in `data/image_limits.py`. `SECURITY.md` says what holds in all.
"""

import errno
import io
import json
import math
import os
import stat
from typing import IO, Any

import numpy as np
from etils import epath

MAX_JSON_BYTES = 64 << 20
"""Of a text that is read at once: configs, headers, lists of files. What Orbax notes of a ViT-H on
a thousand chips has 17 MB; parsed, JSON can take twenty times its size."""

MAX_EXPANSION = 64
"""How many bytes of tensors a byte of a compressed file may become. Trained weights shrink by a
tenth, and a model at its first step, half of it zeros, by half; deflate could do 1,032."""

FREE_BYTES = 256 << 20
"""That many bytes of tensors are allowed whatever the file's size: they do no harm."""


def check_expansion(claimed: int, stored: int) -> None:
    """Raises ValueError where `stored` bytes of a file claim to be too many bytes of tensors."""
    if claimed > max(FREE_BYTES, MAX_EXPANSION * stored):
        raise ValueError(
            f'{stored:,} bytes claim to hold {claimed:,}, more than {MAX_EXPANSION} times as many'
        )


def read_npy(data: bytes) -> np.ndarray:
    """The array of a .npy file: a view of the file's bytes, so that it takes no more than them.

    Raises:
      ValueError: they are not as many numbers as the header says, or it holds pickled objects.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f'a .npy file of version {version}')
    shape, fortran_order, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError('it holds pickled objects, which are never read')
    if math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f'a .npy file that has not the {shape} numbers it says')
    array = np.frombuffer(data, dtype, math.prod(shape), file.tell())
    return array.reshape(shape, order='F' if fortran_order else 'C')


def regular_size(path: str | os.PathLike) -> int:
    """The bytes of a file; links are followed.

    Raises:
      OSError: it is missing, or is not a file but a directory, a pipe or a device, which might
        never end.
    """
    if '://' in os.fspath(path):
        return epath.Path(path).stat().length
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, 'it is not a regular file', os.fspath(path))
    return found.st_size


def _open(path: str | os.PathLike) -> IO[bytes]:
    is_local = '://' not in os.fspath(path)
    return open(path, 'rb') if is_local else epath.Path(path).open('rb')  # for gs://, and slower


def read_bytes(path: str | os.PathLike, most: int) -> bytes:
    """All of a file.

    Raises:
      OSError: as of `regular_size`; or it has more than `most` bytes.
    """
    size = regular_size(path)
    if size <= most:
        with _open(path) as file:
            content = file.read(size + 1)  # not most: Python would make room for that much first
            if len(content) > size:  # it has grown
                content += file.read(most - size)
        size = len(content)
    if size > most:
        told = f'it has {size:,} bytes, where {most:,} is the most'
        raise OSError(errno.EFBIG, told, os.fspath(path))
    return content


def parse_json(text: str | bytes) -> Any:
    """What JSON holds. Raises ValueError, and nothing else, for whatever is wrong with it."""
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f'more than {MAX_JSON_BYTES:,} bytes of JSON')
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError('JSON nested too deeply') from error


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds.

    Raises:
      OSError: as of `read_bytes`.
      ValueError: it is no JSON.
    """
    return parse_json(read_bytes(path, MAX_JSON_BYTES))


def reason(error: Exception) -> str:
    """What an error says, without the number and the path that the system's come with."""
    return f'{getattr(error, "strerror", None) or error}'.strip().rstrip('.')


def within(name: Any) -> bool:
    """Whether a path that a file names stays in the directory where it is meant: relative, no
    '..', and written in the one way."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and os.path.normpath(name) == name
        and not os.path.isabs(name)
        and '\\' not in name
        and name.split('/')[0] not in ('', '.', '..')
    )


def strange_entry(directory: str | os.PathLike) -> str | None:
    """The name of something below a directory that is neither file nor directory, such as a link,
    which could lead anywhere, or a pipe, which could be waited for for ever. None if all is well.

    In the cloud there are no such things.
    """
    if '://' in os.fspath(directory):
        return None
    for folder, folders, files in os.walk(directory):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                return os.path.relpath(path, directory)
    return None
