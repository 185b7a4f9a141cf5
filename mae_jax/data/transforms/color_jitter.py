"""Colour jitter, equal to torchvision's ColorJitter on a Pillow image.

`ColorJitter.draw` chooses operations and their factors; `apply` applies one of them.
"""

import dataclasses
import re

import numpy as np
from PIL import Image, ImageEnhance

from mae_jax.errors import UserError

OPS = ('brightness', 'contrast', 'saturation', 'hue')

# Key of a recipe -> field of ColorJitter, its largest value: a factor of 256 maps all values to 0
# and 255; half a turn in both directions covers every hue.
KEYS = {
    'b': ('brightness', 255),
    'c': ('contrast', 255),
    's': ('saturation', 255),
    'h': ('hue', 0.5),
}


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Changes brightness, contrast, saturation and hue of an image in a random order.

    Attributes:
      brightness, contrast, saturation: the factor is uniform in [max(0, 1 - x), 1 + x], where 1 is
        the identity.
      hue: the shift is uniform in [-x, x], in turns of the colour circle, x at most 0.5.

    An operation of strength 0 is not applied. Saturation and hue do not change a grey image.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Returns an image of the same size and mode with changed colours.

        Raises:
          UserError: the image is not a Pillow image of mode RGB or L.
        """
        check_picture(image, 'Colour jitter')
        for op, factor in self.draw(rng):
            image = apply(image, op, factor)
        return image

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Draws the operations for one image, in the order to apply them: (name, factor or shift).

        Random numbers are drawn for all four, so that one of strength 0 does not change the others.
        """
        ranges = [(max(0, 1 - x), 1 + x) for x in (self.brightness, self.contrast, self.saturation)]
        ranges.append((-self.hue, self.hue))
        order = rng.permutation(len(OPS))
        factors = [rng.uniform(*limits) for limits in ranges]
        return [(OPS[i], factors[i]) for i in order if getattr(self, OPS[i])]


def parse_color_jitter(spec: str) -> ColorJitter:
    """Parses a recipe such as 'jitter-b0.4-c0.4-s0.4-h0.1'; keys that are missing are 0.

    Args:
      spec: `jitter`, then any of b (brightness), c (contrast), s (saturation) and h (hue), joined
        by dashes.

    Raises:
      UserError: the policy or a key is unknown, there is no key, or a value is out of range.
    """
    policy, *settings = spec.split('-')
    if policy != 'jitter':
        raise _bad_spec(spec, f'policy {policy!r} is unknown')
    if not settings:
        raise _bad_spec(spec, 'it names nothing to change')
    fields = {}
    for setting in settings:
        match = re.fullmatch(r'([a-z]+)(\d.*)', setting)
        if not match or match[1] not in KEYS:
            raise _bad_spec(spec, f'{setting!r} is unknown')
        field, most = KEYS[match[1]]
        try:
            fields[field] = float(match[2])
        except ValueError:
            raise _bad_spec(spec, f'{match[2]!r} in {setting!r} is no float') from None
        if fields[field] > most:
            raise _bad_spec(spec, f'{setting!r} is not within 0 and {most}')
    return ColorJitter(**fields)


def check_picture(image: Image.Image | np.ndarray, augmentation: str) -> None:
    """Raises a UserError unless an image is a Pillow image of mode RGB or L."""
    if isinstance(image, Image.Image) and image.mode in ('RGB', 'L'):
        return
    pil = isinstance(image, Image.Image)
    what = f'mode {image.mode}' if pil else f'{image.dtype} of shape {image.shape}'
    raise UserError(
        f'{augmentation} is defined for 8-bit RGB and grey images, not for {what}: set '
        "dataset.augment=''."
    )


def apply(image: Image.Image, op: str, factor: float) -> Image.Image:
    """Applies one operation to an image of mode RGB or L.

    Args:
      image: stays unchanged.
      op, factor: as `ColorJitter.draw` returns them.
    """
    match op:
        case 'brightness':
            return ImageEnhance.Brightness(image).enhance(factor)
        case 'contrast':
            return ImageEnhance.Contrast(image).enhance(factor)
        case 'saturation':
            return ImageEnhance.Color(image).enhance(factor)
        case 'hue':
            return _shift_hue(image, factor)
    raise ValueError(f'{op!r} is none of {OPS}')


def _shift_hue(image: Image.Image, turns: float) -> Image.Image:
    if image.mode == 'L':
        return image
    hue, saturation, value = image.convert('HSV').split()
    steps = int(turns * 255)  # of the 256 of a turn; torchvision multiplies by 255
    hue = hue.point([(v + steps) % 256 for v in range(256)])
    return Image.merge('HSV', (hue, saturation, value)).convert('RGB')


def _bad_spec(spec: str, reason: str) -> UserError:
    return UserError(
        f"dataset.augment={spec!r}: {reason}; give 'jitter' with any of b, c, s and h, e.g. "
        "'jitter-b0.4-c0.4-s0.4-h0.1', or '' for none."
    )
