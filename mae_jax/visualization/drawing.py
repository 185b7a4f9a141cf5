"""Drawing: images, masks, heat maps and titles, put together into one picture.

Everything drawn is uint8 [B,H,W,3], B images of one column; `grid` sets columns side by side.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mae_jax.models.patches import unpatchify

HIDDEN_GREY = 128
MARGIN = 4
MIN_SIDE = 160
"""Smaller images are enlarged to at least so many pixels a side."""
FONT_SIZE = 15

RAMP = ((10, 8, 40), (92, 24, 110), (200, 60, 80), (250, 150, 50), (255, 250, 190))
"""The colours of 0, 1/4, 1/2, 3/4 and 1: each lighter than the one before, in grey too."""


def to_pixels(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Undoes `normalize`: what was n / scale * 255 before is that again, to the bit for uint8.

    Args:
      images: float [B,H,W,C], normalised. One channel is shown as grey, of two the first, of more
        than three the first three.
      mean, std: one a channel.

    Returns:
      uint8 [B,H,W,3].
    """
    shown = (images * np.asarray(std) + np.asarray(mean)) * 255.0
    shown = np.clip(np.rint(shown), 0, 255).astype(np.uint8)
    return shown[..., :3] if shown.shape[-1] >= 3 else shown[..., :1].repeat(3, axis=-1)


def hide(pixels: np.ndarray, mask: np.ndarray, patch_size: int) -> np.ndarray:
    """uint8 [B,H,W,3] with the patches grey where `mask`, bool [B,N], is True."""
    hidden = np.repeat(mask[..., None], patch_size**2, axis=-1)
    hidden = unpatchify(hidden, patch_size, pixels.shape[1:3])
    return np.where(hidden, np.uint8(HIDDEN_GREY), pixels)


def heat(values: np.ndarray, patch_size: int) -> np.ndarray:
    """Non-negative [B,rows,columns] as colours of `RAMP`: dark for 0, light for each map's largest.

    Returns:
      uint8 [B,H,W,3], patch_size pixels a value.
    """
    values = values / np.maximum(values.max(axis=(1, 2), keepdims=True), np.finfo(np.float32).tiny)
    places = np.linspace(0, 1, len(RAMP))
    bands = [np.interp(values, places, band) for band in np.transpose(RAMP)]
    return enlarge(np.rint(np.stack(bands, axis=-1)).astype(np.uint8), patch_size)


def enlarge(pixels: np.ndarray, factor: int) -> np.ndarray:
    """[B,H,W,3] -> [B,factor*H,factor*W,3], nothing smoothed."""
    return pixels.repeat(factor, axis=1).repeat(factor, axis=2)


def grid(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """One row an image, a title above each column, white margins, small images enlarged.

    Args:
      columns: title -> uint8 [B,H,W,3], all of one shape.

    Returns:
      uint8 [height, width, 3].
    """
    height, width = next(iter(columns.values())).shape[1:3]
    factor = -(-MIN_SIDE // min(height, width))
    margins = ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0))
    cells = [
        np.pad(enlarge(column, factor), margins, constant_values=255) for column in columns.values()
    ]
    rows = np.concatenate(cells, axis=2)
    titles = _titles(list(columns), cells[0].shape[2])
    return np.concatenate([titles, *rows])


def _titles(titles: Sequence[str], width: int) -> np.ndarray:
    """uint8 [height, len(titles) * width, 3]: each in the middle of its column, at the bottom."""
    font = ImageFont.load_default(size=FONT_SIZE)
    texts = [_wrapped(title, font, width - 6 * MARGIN) for title in titles]
    lines = 1 + max(text.count('\n') for text in texts)
    height = MARGIN + lines * (FONT_SIZE + MARGIN)
    strip = Image.new('RGB', (width * len(titles), height), 'white')
    draw = ImageDraw.Draw(strip)
    for place, text in enumerate(texts):
        middle = place * width + width // 2
        draw.multiline_text((middle, height), text, 'black', font, anchor='md', align='center')
    return np.asarray(strip)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text` with line breaks between words, so that it fits `width` pixels where words do."""
    lines = ['']
    for word in text.split():
        longer = f'{lines[-1]} {word}'.strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    return '\n'.join(lines).strip()
