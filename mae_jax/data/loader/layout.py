"""The memory of a piece of a batch: the rows of one device, in an array for each name."""

import dataclasses
import math
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

    def arrays(self, memory: memoryview | np.ndarray, offset: int = 0) -> Arrays:
        """Returns the arrays of the piece at an offset in bytes."""
        arrays = {}
        for name, column in self.columns.items():
            shape = (self.images * column.rows, *column.shape)
            arrays[name] = np.ndarray(shape, column.dtype, memory, offset)
            offset += self._size(column)
        return arrays

    def allocate(self) -> Arrays:
        """Returns the arrays of a piece in new, aligned memory."""
        return self.arrays(aligned(self.nbytes()))

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


def aligned(nbytes: int) -> np.ndarray:
    """Returns new memory, uint8 [nbytes], whose address is a multiple of `ALIGNMENT`."""
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + nbytes]


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """Returns a copy whose address is a multiple of `ALIGNMENT`."""
    copy = aligned(array.nbytes).view(array.dtype).reshape(array.shape)
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
