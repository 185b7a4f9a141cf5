"""Drawing: images, masks, heat maps and titles, put together into one picture."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from mae_jax.models.patches import unpatchify

Pixels = UInt8[np.ndarray, 'B H W 3']
"""Drawn images: a column of a picture, one image a row."""
Columns = dict[str, Pixels]
"""Columns of a picture by their titles, from left to right."""

HIDDEN_GREY = 128
MARGIN = 4
MIN_SIDE = 160
"""Smaller images are enlarged to at least this number of pixels a side."""
FONT_SIZE = 20
SCALE_WIDTH = 200

RAMP = ((10, 8, 40), (92, 24, 110), (200, 60, 80), (250, 150, 50), (255, 250, 190))
"""The colours of 0, 1/4, 1/2, 3/4 and 1: each lighter than the one before, in grey too."""


def to_pixels(
    images: Float[np.ndarray, 'B H W C'], mean: Sequence[float], std: Sequence[float]
) -> Pixels:
    """Undoes `normalize`: recovers pixels of 8 bits exactly.

    Args:
      images: normalised. One channel is drawn in grey, of two the first, of more than three the
        first three.
      mean, std: one a channel.
    """
    pixels = (images * np.asarray(std) + np.asarray(mean)) * 255.0
    pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., :1].repeat(3, axis=-1)


def hide(pixels: Pixels, mask: Bool[np.ndarray, 'B N'], patch_size: int) -> Pixels:
    """Greys the patches where the mask is True."""
    hidden = np.repeat(mask[..., None], patch_size**2, axis=-1)
    hidden = unpatchify(hidden, patch_size, pixels.shape[1:3])
    return np.where(hidden, np.uint8(HIDDEN_GREY), pixels)


def heat(
    values: Shaped[np.ndarray, 'B rows columns'], patch_size: int, top: float | None = None
) -> Pixels:
    """Draws maps in the colours of `RAMP`, from dark for 0 to light for `top`.

    Args:
      values: non-negative.
      patch_size: pixels a side for each value.
      top: None is each map's largest value.
    """
    largest = values.max(axis=(1, 2), keepdims=True) if top is None else top
    values = values / np.maximum(largest, np.finfo(np.float32).tiny)
    stops = np.linspace(0, 1, len(RAMP))
    bands = [np.interp(values, stops, band) for band in np.transpose(RAMP)]
    return enlarge(np.rint(np.stack(bands, axis=-1)).astype(np.uint8), patch_size)


def color_scale(title: str, top: float, width: int) -> UInt8[np.ndarray, 'height {width} 3']:
    """Draws a strip with the colours of `heat`, between the numbers 0 and `top`, in its middle."""
    height, bar = FONT_SIZE + 3 * MARGIN, heat(np.linspace(0, 1, SCALE_WIDTH)[None, None], 1)[0]
    bar = bar.repeat(FONT_SIZE, axis=0)
    texts = f'{title}  0 ', f' {top:.3g}'
    font = ImageFont.load_default(size=FONT_SIZE)
    left, right = (round(font.getlength(text)) for text in texts)
    strip = Image.new('RGB', (width, height), 'white')
    draw = ImageDraw.Draw(strip)
    start = max((width - left - SCALE_WIDTH - right) // 2, 0)
    draw.text((start, height // 2), texts[0], 'black', font, anchor='lm')
    strip.paste(Image.fromarray(bar), (start + left, (height - FONT_SIZE) // 2))
    draw.text((start + left + SCALE_WIDTH, height // 2), texts[1], 'black', font, anchor='lm')
    return np.asarray(strip)


def enlarge(pixels: Pixels, factor: int) -> UInt8[np.ndarray, 'B {factor}*H {factor}*W 3']:
    """Repeats each pixel `factor` times in both directions."""
    return pixels.repeat(factor, axis=1).repeat(factor, axis=2)


def grid(
    columns: Mapping[str, Pixels], caption: str = '', abreast: int = 1
) -> UInt8[np.ndarray, 'height width 3']:
    """Draws one picture: a row for each image, a title above each column, white margins.

    Args:
      columns: all of one shape; small images are enlarged.
      caption: a sentence above the titles, over the whole width.
      abreast: images in a row, each with all columns; the last row may have room for more.
    """
    count, height, width = next(iter(columns.values())).shape[:3]
    factor = -(-MIN_SIDE // min(height, width))
    margins = ((0, -count % abreast), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0))
    cells = [
        np.pad(enlarge(column, factor), margins, constant_values=255) for column in columns.values()
    ]
    titles = _draw_titles(list(columns) * abreast, cells[0].shape[2])
    images = np.concatenate(cells, axis=2)
    rows = images.reshape(-1, abreast, *images.shape[1:])
    rows = rows.swapaxes(1, 2).reshape(-1, *titles.shape[1:])
    captions = [_draw_titles([caption], titles.shape[1])] if caption else []
    return np.concatenate([*captions, titles, rows])


def _draw_titles(titles: Sequence[str], width: int) -> UInt8[np.ndarray, 'height all_columns 3']:
    """Draws each title centred in its column of `width` pixels, at the bottom."""
    font = ImageFont.load_default(size=FONT_SIZE)
    texts = [_wrap(title, font, width - 6 * MARGIN) for title in titles]
    lines = 1 + max(text.count('\n') for text in texts)
    height = MARGIN + lines * (FONT_SIZE + MARGIN)
    strip = Image.new('RGB', (width * len(titles), height), 'white')
    draw = ImageDraw.Draw(strip)
    for index, text in enumerate(texts):
        middle = index * width + width // 2
        draw.multiline_text((middle, height), text, 'black', font, anchor='md', align='center')
    return np.asarray(strip)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Breaks `text` into lines of at most `width` pixels, or of one word where that is longer."""
    lines = ['']
    for word in text.split():
        longer = f'{lines[-1]} {word}'.strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    return '\n'.join(lines).strip()
