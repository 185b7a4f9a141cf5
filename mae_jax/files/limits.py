"""Limits on untrusted files, and the checks made before such a file is read.

Weights and the files beside them are untrusted data: they may be damaged, or made to do harm. The
limits on images are in `data/images/limits.py`. `SECURITY.md` lists all guarantees.
"""

import errno
import io
import json
import math
import os
import stat
from typing import IO, Any

import numpy as np

from mae_jax.files.buckets import as_path, is_remote, service_errors

MAX_JSON_BYTES = 64 << 20
"""Maximum size of a JSON text: configs, headers, lists of files. Orbax's metadata of a ViT-H on a
thousand chips has 17 MB; once parsed, JSON can take twenty times its size."""

MAX_EXPANSION = 64
"""Maximum bytes of tensors for each byte of a compressed file. Trained weights compress by a tenth,
and a model at its first step, half of it zeros, by half; deflate can reach a factor of 1,032."""

FREE_BYTES = 256 << 20
"""Bytes of tensors that are allowed whatever the size of the file: they do no harm."""


def check_expansion(claimed: int, stored: int) -> None:
    """Raises ValueError if `stored` bytes of a file claim to hold too many bytes of tensors."""
    if claimed > max(FREE_BYTES, MAX_EXPANSION * stored):
        raise ValueError(
            f'{stored:,} bytes claim to hold {claimed:,}, more than {MAX_EXPANSION} times as many'
        )


def read_npy(data: bytes) -> np.ndarray:
    """Parses a .npy file into an array that is a view of its bytes, without a copy.

    Raises:
      ValueError: the size differs from that in the header, or the file holds pickled objects.
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
        raise ValueError(f'a .npy file whose size does not fit its shape {shape}')
    array = np.frombuffer(data, dtype, math.prod(shape), file.tell())
    return array.reshape(shape, order='F' if fortran_order else 'C')


def regular_size(path: str | os.PathLike) -> int:
    """Returns the size of a file in bytes; follows links.

    Raises:
      OSError: the file is missing, or is a directory, a pipe or a device, which might never end.
      UserError: the service that has it refuses, or is away.
    """
    if is_remote(path):
        with service_errors(path):
            return as_path(path).stat().length
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, 'it is not a regular file', os.fspath(path))
    return status.st_size


def _open(path: str | os.PathLike) -> IO[bytes]:
    return as_path(path).open('rb') if is_remote(path) else open(path, 'rb')  # the latter is quick


def read_bytes(path: str | os.PathLike, maximum: int) -> bytes:
    """Reads a whole file of at most `maximum` bytes.

    Raises:
      OSError: as `regular_size`; or the file is larger.
    """
    size = regular_size(path)
    if size <= maximum:
        with service_errors(path), _open(path) as file:
            content = file.read(size + 1)  # not maximum: Python would allocate that much first
            if len(content) > size:  # it has grown since
                content += file.read(maximum - size)
        size = len(content)
    if size > maximum:
        message = f'it has {size:,} bytes, where {maximum:,} is the most'
        raise OSError(errno.EFBIG, message, os.fspath(path))
    return content


def parse_json(text: str | bytes) -> Any:
    """Parses JSON of at most `MAX_JSON_BYTES`; raises no other error than ValueError."""
    if len(text) > MAX_JSON_BYTES:
        raise ValueError(f'more than {MAX_JSON_BYTES:,} bytes of JSON')
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError('JSON nested too deeply') from error


def read_json(path: str | os.PathLike) -> Any:
    """Reads and parses a JSON file.

    Raises:
      OSError: as `read_bytes`.
      ValueError: it is not valid JSON.
    """
    return parse_json(read_bytes(path, MAX_JSON_BYTES))


def reason(error: Exception) -> str:
    """Returns the message of an error, without the number and the path of a system error."""
    return f'{getattr(error, "strerror", None) or error}'.strip().rstrip('.')


def is_inside(name: Any) -> bool:
    """Returns whether a path from an untrusted file stays inside the directory it is relative to.

    It must be relative, normalised ('a//b' is not) and without '..'.
    """
    return (
        isinstance(name, str)
        and name.isprintable()
        and os.path.normpath(name) == name
        and not os.path.isabs(name)
        and '\\' not in name
        and name.split('/')[0] not in ('', '.', '..')
    )


def find_irregular(directory: str | os.PathLike) -> str | None:
    """Returns an entry below a directory that is neither a regular file nor a directory, or None.

    Such are links, which can lead outside of the directory, and pipes, which can block a reader for
    ever. Cloud storage has none.
    """
    if is_remote(directory):
        return None
    for folder, folders, files in os.walk(directory):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                return os.path.relpath(path, directory)
    return None
