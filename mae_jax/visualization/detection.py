"""Pictures of detections: boxes, masks, names and scores over the image."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from mae_jax.visualization.drawing import Columns

SIDE = 320
"""Smaller images are enlarged to at least so many pixels of the shorter side, for the names."""
SHOWN = 0.5
"""Detections with lower scores are not drawn."""
OPACITY = 0.45
"""Of masks."""
TEXT = 13
"""Height of names in pixels."""


class Instances(NamedTuple):
    """Objects of one image, the most certain first; each array has a row for each."""

    boxes: Float[np.ndarray, 'n 4']
    """x0, y0, x1, y1 in pixels of the image."""
    classes: Int[np.ndarray, ' n']
    masks: Bool[np.ndarray, 'n H W']
    scores: Float32[np.ndarray, ' n'] | None = None


def detection_columns(
    images: Sequence[UInt8[np.ndarray, '_H _W 3']],
    instances: Sequence[Instances],
    names: Sequence[str],
    colours: UInt8[np.ndarray, 'K 3'],
) -> Columns:
    """Draws images, and beside each what was detected in it with a score of at least `SHOWN`.

    Args:
      images: of any sizes; what is beyond one in its cell of the picture is white.
      instances: of each.
      names: of the classes; with none, their numbers are written.
      colours: of the classes.
    """
    drawn = [
        draw_instances(image, _certain(each), names, colours)
        for image, each in zip(images, instances, strict=True)
    ]
    plain = [_enlarged(image) for image in images]
    return {'image': _on_canvas(plain), 'detections': _on_canvas(drawn)}


def draw_instances(
    image: UInt8[np.ndarray, 'H W 3'],
    instances: Instances,
    names: Sequence[str],
    colours: UInt8[np.ndarray, 'K 3'],
) -> UInt8[np.ndarray, '_H _W 3']:
    """Draws objects over an image, in the colours of their classes, the first on top.

    The picture is a multiple of the image's size: see `SIDE`.
    """
    pixels = _enlarged(image).astype(np.float32)
    factor = len(pixels) // len(image)
    for number in reversed(range(len(instances.classes))):
        mask = instances.masks[number].repeat(factor, axis=0).repeat(factor, axis=1)
        colour = colours[instances.classes[number]].astype(np.float32)
        pixels[mask] += OPACITY * (colour - pixels[mask])
    picture = Image.fromarray(np.rint(pixels).astype(np.uint8))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=TEXT)
    for number in reversed(range(len(instances.classes))):
        kind, box = instances.classes[number], instances.boxes[number] * factor
        colour = tuple(map(int, colours[kind]))
        # The edges x1 and y1 do not belong to the box.
        x0, y0, x1, y1 = np.rint(box).astype(int) - np.array([0, 0, 1, 1])
        draw.rectangle([x0, y0, max(x1, x0), max(y1, y0)], outline=colour, width=2)
        text = str(names[kind]) if len(names) else str(kind)
        if instances.scores is not None:
            text += f' {instances.scores[number]:.2f}'
        _write(draw, font, text, (int(x0), int(y0)), colour, picture.size)
    return np.asarray(picture)


def _write(
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont,
    text: str,
    corner: tuple[int, int],
    colour: tuple[int, ...],
    size: tuple[int, int],
) -> None:
    """Writes a text on its colour above a corner, moved into the picture where that is outside."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font)
    width, height = right + 3, bottom + 2
    x = max(min(corner[0], size[0] - width), 0)
    y = max(corner[1] - height, 0)
    draw.rectangle([x, y, x + width, y + height], fill=colour)
    light = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
    draw.text((x + 2, y), text, 'black' if light else 'white', font)


def _certain(instances: Instances) -> Instances:
    if instances.scores is None:
        return instances
    kept = np.flatnonzero(instances.scores >= SHOWN)
    return Instances(*(field[kept] for field in instances))


def _enlarged(image: UInt8[np.ndarray, 'H W 3']) -> UInt8[np.ndarray, '_H _W 3']:
    factor = max(-(-SIDE // min(image.shape[:2])), 1)
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def _on_canvas(
    pictures: Sequence[UInt8[np.ndarray, '_H _W 3']],
) -> UInt8[np.ndarray, 'B H W 3']:
    """Puts pictures of several sizes at the upper left of white cells of one size."""
    sides = np.array([picture.shape[:2] for picture in pictures]).max(axis=0)
    cells = np.full((len(pictures), *sides, 3), 255, np.uint8)
    for cell, picture in zip(cells, pictures, strict=True):
        cell[: picture.shape[0], : picture.shape[1]] = picture
    return cells
