"""Photometric distortion, as mmsegmentation trains with (after SSD, arXiv 1512.02325)."""

import dataclasses

import numpy as np
from PIL import Image

from mae_jax.data.transforms.color_jitter import apply, check_picture

LEVELS = np.arange(256.0)


@dataclasses.dataclass(frozen=True)
class PhotometricDistortion:
    """Changes brightness, contrast, saturation and hue, each with a probability of 1/2.

    Brightness comes first. A coin decides whether contrast is next or last; saturation and hue
    follow each other between.

    Attributes:
      brightness: what is added to all values is uniform in [-x, x].
      contrast: all values are multiplied by a factor of this range.
      saturation: that of HSV is multiplied by a factor of this range.
      hue: the shift is a whole number of half degrees in [-x, x), 180 of them a turn.

    Values are cut to 0 to 255 and rounded down after each. Saturation and hue do not change a grey
    image.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: int = 18

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Returns an image of the same size and mode with changed colours.

        Raises:
          UserError: the image is not a Pillow image of mode RGB or L.
        """
        check_picture(image, 'Photometric distortion')
        for op, value in self.draw(rng):
            image = distort(image, op, value)
        return image

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Draws the operations for one image, in the order to apply them: (name, strength).

        Random numbers are drawn for all four, so that one that is left out does not change others.
        """
        chosen, contrast_last = rng.random(4) < 0.5, rng.random() < 0.5
        values = {
            'brightness': rng.uniform(-self.brightness, self.brightness),
            'contrast': rng.uniform(*self.contrast),
            'saturation': rng.uniform(*self.saturation),
            'hue': float(rng.integers(-self.hue, self.hue)) / 180,
        }
        ops = [op for op, keep in zip(values, chosen, strict=True) if keep]
        if contrast_last:
            ops.sort(key='contrast'.__eq__)
        return [(op, values[op]) for op in ops]


def distort(image: Image.Image, op: str, value: float) -> Image.Image:
    """Applies one operation to an image of mode RGB or L, which stays unchanged.

    Args:
      image: 8-bit RGB or grey.
      op, value: as `PhotometricDistortion.draw` returns them; hue in turns of the colour circle.
    """
    match op:
        case 'brightness':
            return image.point(_table(LEVELS + value) * len(image.getbands()))
        case 'contrast':  # about black, which torchvision calls brightness
            return apply(image, 'brightness', value)
        case 'saturation':
            return _scale_saturation(image, value)
        case 'hue':
            return apply(image, 'hue', value)
    raise ValueError(f'{op!r} is no operation')


def _scale_saturation(image: Image.Image, factor: float) -> Image.Image:
    if image.mode == 'L':
        return image
    hue, saturation, value = image.convert('HSV').split()
    saturation = saturation.point(_table(LEVELS * factor))
    return Image.merge('HSV', (hue, saturation, value)).convert('RGB')


def _table(values: np.ndarray) -> list[int]:
    return values.clip(0, 255).astype(int).tolist()
