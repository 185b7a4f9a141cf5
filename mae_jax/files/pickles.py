"""Reads NumPy arrays from pickles, the `.pkl` files of detectron2, without running any of them.

A pickle can name any function and have it called. Only the names of `ALLOWED` may occur here, those
by which NumPy's own arrays are stored, and each is replaced by an inert class of this module that
holds what it is given; arrays are made of that afterwards, and checked.
"""

import math
import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from mae_jax.errors import UserError
from mae_jax.files.limits import check_expansion
from mae_jax.files.tensors import local_copy, unreadable

DTYPES = ('f2', 'f4', 'f8', 'i4', 'i8')
"""Types of numbers that are read, as NumPy's pickles name them."""


class _Dtype:
    """Stands for a `numpy.dtype`."""

    def __init__(self, name: Any, *_: Any):
        self.name, self.order = name, '<'

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def numpy(self) -> np.dtype:
        if self.name not in DTYPES or self.order not in ('<', '>', '='):
            raise ValueError(f'it holds numbers of the type {str(self.name)[:20]!r}')
        return np.dtype(self.order + self.name)


class _Array:
    """Stands for a `numpy.ndarray`, as `_reconstruct` makes it and its state fills it."""

    def __init__(self, *_: Any):
        self.shape, self.dtype, self.fortran, self.data = (), None, False, b''

    def __setstate__(self, state: tuple) -> None:
        *_, self.shape, self.dtype, self.fortran, self.data = state


class _Scalar:
    """Stands for a `numpy.generic`; nothing needs its value."""

    def __init__(self, *_: Any):
        pass


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.__setstate__((shape, dtype, order == 'F', data))
    return array


def _as_bytes(text: Any, encoding: Any = 'latin1') -> bytes:
    """Returns bytes as protocol 2 stores them: as text of the characters 0 to 255."""
    return text.encode('latin1')


def _no_bytes() -> bytes:
    """Returns what protocols 0 to 2 store as a call of `bytes`: nothing."""
    return b''


_NUMPY = {
    ('multiarray', '_reconstruct'): _Array,
    ('multiarray', 'scalar'): _Scalar,
    ('numeric', '_frombuffer'): _from_buffer,
}
ALLOWED = {
    **{
        (f'numpy.{core}.{m}', name): x
        for (m, name), x in _NUMPY.items()
        for core in ('core', '_core')
    },
    ('numpy', 'ndarray'): _Array,
    ('numpy', 'dtype'): _Dtype,
    ('_codecs', 'encode'): _as_bytes,
    ('__builtin__', 'bytes'): _no_bytes,
    ('collections', 'OrderedDict'): OrderedDict,
}
"""(module, name) in the file -> its replacement."""


class _Unpickler(pickle._Unpickler):
    """Unpickles only the names of `ALLOWED`.

    This is the unpickler in Python, because the one in C allocates memory for as many objects as a
    file claims to have.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise UserError(
                f'it would run {module}.{name}, which is never done; have its author save the '
                'tensors alone'
            )
        return ALLOWED[module, name]


def read_pkl(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a pickled dict, and dicts in it, with NumPy arrays.

    Raises:
      UserError: it names anything else than arrays, is damaged, or no such file.
    """
    with local_copy(path) as file:
        try:
            with open(file, 'rb') as opened:
                content = _Unpickler(opened, encoding='latin1').load()
            return _arrays(content, os.path.getsize(file))
        except Exception as error:  # damaged files raise exceptions of all kinds
            own = isinstance(error, UserError | ValueError) and str(error)
            problem = error if own else 'it is truncated, damaged or of another kind'
            raise unreadable(path, 'pickle', problem) from error


def _arrays(content: Any, size: int) -> dict[str, Any]:
    """Returns a dict, and those directly in it, with arrays in the place of what stands for them.

    Each level is read once, and no deeper: a dict that holds itself ends here.
    """
    if not isinstance(content, Mapping):
        raise ValueError('it holds no named tensors')
    claimed = 0

    def convert(node: Any, depth: int) -> Any:
        nonlocal claimed
        if isinstance(node, _Array):
            array = _array(node)
            claimed += array.nbytes
            check_expansion(claimed, size)
            return array
        if isinstance(node, Mapping):
            return {str(k): convert(x, depth + 1) for k, x in node.items()} if depth < 2 else None
        return node

    return convert(content, 0)


def _array(node: _Array) -> np.ndarray:
    if not isinstance(node.dtype, _Dtype):
        raise ValueError('an array has no type')
    dtype, shape, data = node.dtype.numpy(), node.shape, node.data
    if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError('an array has no shape')
    data = data.encode('latin1') if isinstance(data, str) else data  # of Python 2
    if not isinstance(data, bytes | bytearray) or len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError('an array does not have the numbers of its shape')
    array = np.frombuffer(data, dtype).reshape(shape, order='F' if node.fortran else 'C')
    return array.astype(dtype.newbyteorder('='), copy=False)


def write_pkl(path: str | os.PathLike, content: dict[str, Any]) -> None:
    """Writes a local pickle of dicts with NumPy arrays, for detectron2."""
    with open(path, 'wb') as file:
        pickle.dump(content, file, protocol=4)
