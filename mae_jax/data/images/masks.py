"""Masks: images whose pixels are numbers of classes."""

import dataclasses

import numpy as np
from jaxtyping import Int
from PIL import Image

from mae_jax.data.images.arrays import as_array
from mae_jax.data.images.decode import BadImage, read_pixels
from mae_jax.errors import UserError, counted

MAX_CLASSES = 65_535
CONVERSION = (
    'Image.fromarray(np.uint8((np.array(rgb)[..., None, :] == colours).all(-1).argmax(-1)))'
)
"""Python that turns an RGB mask into one of indices; `colours` are those of the classes, [n, 3]."""


@dataclasses.dataclass(frozen=True)
class MaskValues:
    """What the values of a mask's pixels mean.

    Attributes:
      num_classes: from 2 to `MAX_CLASSES`.
      ignored: values that are no class, beside what else the pixels hold.
      reduce_zero_label: 0 is no class either, and class 0 has the value 1.

    Raises:
      UserError: there are too few or too many classes, or the value of one of them is ignored.
    """

    num_classes: int
    ignored: tuple[int, ...] = (255,)
    reduce_zero_label: bool = False

    def __post_init__(self):
        if not 2 <= self.num_classes <= MAX_CLASSES:
            raise UserError(f'num_classes={self.num_classes} must be from 2 to {MAX_CLASSES:,}.')
        for value in self.ignored:
            if 0 <= value - self._first < self.num_classes:
                raise UserError(
                    f'dataset.ignored={value} is the value of a class: the {self._range}. Leave it '
                    'out, such as by dataset.ignored=(), or give masks and classes without it.'
                )

    @property
    def _first(self) -> int:
        return int(self.reduce_zero_label)

    @property
    def _range(self) -> str:
        last = self._first + self.num_classes - 1
        return f'{self.num_classes:,} classes are {self._first} to {last}'

    @property
    def dtype(self) -> np.dtype:
        """Returns the dtype of classes: uint8, or int32 for more than 255 of them."""
        return np.dtype(np.uint8 if self.num_classes <= 255 else np.int32)

    @property
    def none(self) -> int:
        """Returns the number that stands for no class, above all others."""
        return 255 if self.num_classes <= 255 else MAX_CLASSES

    def classes(self, mask: Int[np.ndarray, 'H W'], name: str) -> Int[np.ndarray, 'H W']:
        """Converts the values of a mask to classes, where `none` stands for no class.

        Args:
          mask: as `read_mask` returns it.
          name: what messages call it.

        Raises:
          UserError: a value is neither that of a class nor ignored.
        """
        none = np.zeros(mask.shape, bool)
        for value in (0,) * self._first + tuple(self.ignored):
            none |= mask == value
        classes = mask.astype(np.int64) - self._first
        wrong = ~none & ((classes < 0) | (classes >= self.num_classes))
        if wrong.any():
            raise self._unknown_value(mask, wrong, name)
        return np.where(none, self.none, classes).astype(self.dtype)

    def _unknown_value(self, mask: np.ndarray, wrong: np.ndarray, name: str) -> UserError:
        value = int(mask[wrong].max())
        row, column = np.argwhere(wrong & (mask == value))[0]
        others = int(wrong.sum()) - 1
        more = f', and {counted(others, "other pixel")} beyond them,' if others else ''
        remedies = f'correct the mask, name more classes, or add {value} to dataset.ignored'
        if value == self.num_classes and not self.reduce_zero_label:
            remedies += ', or set dataset.reduce_zero_label=True if 0 means no class'
        return UserError(
            f'{name} has the value {value} in row {row}, column {column}{more} where the '
            f'{self._range}: {remedies}.'
        )


def read_mask(mask: bytes | np.ndarray, name: str) -> Int[np.ndarray, 'H W']:
    """Reads a mask: a PNG of mode L, P, I;16 or 1, any other image of one band, or an array.

    Of a palette the indices are taken, not the colours.

    Args:
      mask: the content of a file, or integers or bools [H, W] or [H, W, 1].
      name: what messages call it.

    Returns:
      Integers of the file's dtype.

    Raises:
      BadImage: the file is damaged, or exceeds `limits.py`.
      UserError: it is a photograph, or has several bands or fractions.
    """
    try:
        pixels, _ = read_pixels(mask, None, False)
        is_picture = isinstance(pixels, Image.Image)
        lossy = is_picture and pixels.format == 'JPEG'
        values = as_array(pixels)
    except UserError as error:
        raise type(error)(f'{name}: {error}') from error
    except Exception as error:  # decoders meet broken files with every kind of exception
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):  # its message is a buffer's address
            reason = 'not an image of a known format'
        raise BadImage(f'{name} cannot be read as a mask: {reason.rstrip(".")}.') from error
    if lossy:
        raise UserError(f'{name} is a JPEG, which changes the numbers of classes: save a PNG.')
    if values.ndim == 3 and values.shape[-1] in (3, 4):
        raise UserError(
            f'{name} is an RGB mask, where every pixel must be the number of its class: convert '
            f'it, such as by {CONVERSION}.'
        )
    if values.ndim != 3 or values.shape[-1] != 1:
        raise UserError(
            f'{name} is a mask of shape {values.shape}, where every pixel must be the number of '
            'its class: save one band.'
        )
    if values.dtype.kind not in 'biu':
        raise UserError(f'{name} is a mask of {values.dtype}: save whole numbers.')
    values = values[..., 0]
    return values.astype(np.uint8) if values.dtype.kind == 'b' else values
