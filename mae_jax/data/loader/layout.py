"""The memory of a piece of a batch: the rows of one device, in an array for each name."""

import collections
import dataclasses
import math
import weakref
from collections.abc import Mapping

import numpy as np

from mae_jax.errors import UserError

ALIGNMENT = 64
"""Bytes. XLA's CPU devices use host memory of this alignment without a copy."""
IMAGES = ('canvas', 'image')
NAME = 'name'
"""What messages call an image: a text that stays with the loader."""
REPLACED = 'replaced'
"""The array that says which rows are of another image than their own; it stays on the host."""

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Column:
    """One array of a piece.

    Attributes:
      rows: of each image.
      shape: of a row.
      dtype: of the numbers.
    """

    rows: int
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The arrays of a piece, one after another in one block of memory.

    Attributes:
      columns: of each name.
      images: of a piece.
      example: the name of the image whose rows all others must be like.
    """

    columns: Mapping[str, Column]
    images: int
    example: str

    def nbytes(self) -> int:
        """Returns the size of a piece in bytes, a multiple of `ALIGNMENT`."""
        return sum(self._size(column) for column in self.columns.values())

    def _size(self, column: Column) -> int:
        size = self.images * column.rows * math.prod(column.shape) * column.dtype.itemsize
        return -(-size // ALIGNMENT) * ALIGNMENT

    def arrays(self, memory: memoryview, offset: int = 0) -> Arrays:
        """Returns the arrays of the piece at an offset in bytes."""
        arrays = {}
        for name, column in self.columns.items():
            shape = (self.images * column.rows, *column.shape)
            arrays[name] = array_in(memory[offset:], shape, column.dtype)
            offset += self._size(column)
        return arrays

    def write(self, arrays: Arrays, number: int, rows: Arrays) -> None:
        """Copies the rows of one image to their place.

        Raises:
          UserError: its dtype is another than that of `example`.
        """
        for name, column in self.columns.items():
            values, start = rows[name], number * column.rows
            if values.dtype != column.dtype and name in IMAGES:
                raise _several_dtypes(
                    {str(column.dtype): self.example, str(values.dtype): rows[NAME]}
                )
            if values.shape != (column.rows, *column.shape) or values.dtype != column.dtype:
                raise ValueError(f'{rows[NAME]}: {name} is {values.dtype} {values.shape}: {column}')
            arrays[name][start : start + column.rows] = values


def layout_of(rows: Arrays, images: int) -> Layout:
    """Returns the layout of a piece of images that are like one of them.

    Args:
      rows: of that image.
      images: of a piece.
    """
    columns = {
        name: Column(len(values), values.shape[1:], values.dtype)
        for name, values in rows.items()
        if name != NAME
    }
    return Layout(columns, images, str(rows[NAME]))


def array_in(memory: memoryview, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns the array at the start of a block of memory, which it keeps alive.

    `np.ndarray(buffer=memory)` would keep alive what the memory is a part of, and not the part.
    """
    return np.frombuffer(memory, dtype, math.prod(shape)).reshape(shape)


class Memory:
    """Blocks of memory that are used again once no array refers to them.

    New memory costs a third of a copy into it: the system clears it page by page.
    """

    def __init__(self):
        self._free = collections.defaultdict(collections.deque)

    def take(self, nbytes: int) -> memoryview:
        """Returns a block of bytes whose address is a multiple of `ALIGNMENT`."""
        free = self._free[nbytes]
        try:
            block = free.popleft()
        except IndexError:
            block = np.empty(nbytes + ALIGNMENT, np.uint8)
        start = -block.ctypes.data % ALIGNMENT
        lease = block[start : start + nbytes]
        weakref.finalize(lease, free.append, block).atexit = False
        return memoryview(lease)

    def copy(self, array: np.ndarray) -> np.ndarray:
        """Returns a copy of an array in such a block."""
        copy = array_in(self.take(array.nbytes), array.shape, array.dtype)
        np.copyto(copy, array)
        return copy


def _several_dtypes(examples: dict[str, str]) -> UserError:
    # NumPy would convert all to one dtype, and config.dataset.scale would be wrong for some.
    files = ' and '.join(f'{file} ({dtype})' for dtype, file in sorted(examples.items()))
    return UserError(
        f'Images of several depths cannot share a batch: {files}. Save all with one depth '
        '(ImageMagick: mogrify -depth 8 FILE), or keep those of each depth in a folder of '
        'their own.'
    )
