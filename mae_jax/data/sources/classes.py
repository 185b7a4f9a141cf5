"""Names and colours of classes: from a file of lines, a palette, or a rule."""

import re
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mae_jax.data.images.limits import open_picture
from mae_jax.errors import UserError
from mae_jax.files.limits import MAX_JSON_BYTES, read_bytes, reason

COLOURED = re.compile(r'(.*?)[\s,;]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)')
"""A name and three numbers."""


def read_classes(path: str) -> tuple[list[str], UInt8[np.ndarray, 'n 3'] | None]:
    """Reads the names of classes, one a line in the order of their numbers.

    A line is `traffic light` or `traffic light 250 170 30`, the latter with red, green and blue,
    which commas or tabs may part as well. Empty lines and those that begin with # do not count.

    Returns:
      (names; colours, or None where not every line has one).

    Raises:
      UserError: the file cannot be read, has no name or one twice, or a colour beyond 255.
    """
    try:
        text = read_bytes(path, MAX_JSON_BYTES).decode('utf-8-sig')
    except (OSError, ValueError) as error:
        raise UserError(f'{path} cannot be read as names of classes: {reason(error)}.') from error
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith('#')]
    matches = [COLOURED.fullmatch(line) for line in lines]
    names = [match[1] if match else line for match, line in zip(matches, lines, strict=True)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice or not names:
        what = f'names {twice} twice' if twice else 'has no name'
        raise UserError(f'{path} {what}: give every class a line with a name of its own.')
    if not all(matches):
        return names, None
    colours = np.array([[int(x) for x in match.groups()[1:]] for match in matches])
    if colours.max() > 255:
        name = names[int(np.argmax(colours.max(axis=1)))]
        raise UserError(f'{path}: the colour of {name} has a number beyond 255.')
    return names, colours.astype(np.uint8)


def palette_colours(data: bytes, first: int, count: int) -> UInt8[np.ndarray, 'n 3'] | None:
    """Returns the colours of the indices `first` to `first + count - 1` in an image's palette.

    None where it is no image, has no palette, or one that is shorter.
    """
    try:
        image = open_picture(data)
        palette = image.getpalette('RGB') if image.mode == 'P' else None
    except Exception:  # a damaged mask is reported when it is read
        return None
    colours = np.array(palette or [], np.uint8).reshape(-1, 3)[first : first + count]
    return colours if len(colours) == count else None


def class_colours(source: Any) -> UInt8[np.ndarray, 'n 3']:
    """Returns a colour for each class of a source: its own `class_colours`, or those of VOC."""
    colours = getattr(source, 'class_colours', None)
    return voc_colours(source.num_classes) if colours is None else np.asarray(colours, np.uint8)


def voc_colours(count: int) -> UInt8[np.ndarray, 'n 3']:
    """Returns the colours by which PASCAL VOC numbers classes, its black for none left out.

    Bit i of a number goes to red, green or blue in turn, from the highest of its bits on: close
    numbers have distant colours.
    """
    numbers, colours = np.arange(1, count + 1), np.zeros((count, 3), np.uint8)
    for bit in range(8):
        for band in range(3):
            colours[:, band] |= ((numbers >> (3 * bit + band) & 1) << (7 - bit)).astype(np.uint8)
    return colours
