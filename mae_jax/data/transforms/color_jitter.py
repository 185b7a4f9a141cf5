"""Colour jitter as torchvision's ColorJitter means it on a PIL image.

What to do to an image is drawn apart from doing it: `ColorJitter.draw`, then `apply` for each.
"""

import dataclasses
import re

import numpy as np
from PIL import Image, ImageEnhance

from mae_jax.errors import UserError

OPS = ('brightness', 'contrast', 'saturation', 'hue')

# Key of a recipe -> field, largest value: a factor of 256 leaves nothing but 0 and 255; half a turn
# either way is every hue.
KEYS = {
    'b': ('brightness', 255),
    'c': ('contrast', 255),
    's': ('saturation', 255),
    'h': ('hue', 0.5),
}


@dataclasses.dataclass(frozen=True)
class ColorJitter:
    """Changes an image's colours, in a random order of the operations.

    Attributes:
      brightness, contrast, saturation: the factor is uniform in [max(0, 1 - x), 1 + x]; 1 is the
        image as it is.
      hue: the shift is uniform in [-x, x], in turns of the colour circle, x at most 0.5.

    An operation of strength 0 is left out. Saturation and hue leave a grey image as it is.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The image with other colours; its size and mode stay.

        Raises:
          UserError: not a PIL image of mode RGB or L.
        """
        if not isinstance(image, Image.Image) or image.mode not in ('RGB', 'L'):
            pil = isinstance(image, Image.Image)
            what = f'mode {image.mode}' if pil else f'{image.dtype} of shape {image.shape}'
            raise UserError(
                f'Colour jitter is defined for 8-bit RGB and grey images, not for {what}: set '
                "dataset.augment=''."
            )
        for op, factor in self.draw(rng):
            image = apply(image, op, factor)
        return image

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """The operations to apply to one image, in their order, each with its factor or shift.

        All four are drawn, so that leaving one out does not change the others.
        """
        ranges = [(max(0, 1 - x), 1 + x) for x in (self.brightness, self.contrast, self.saturation)]
        ranges.append((-self.hue, self.hue))
        order = rng.permutation(len(OPS))
        factors = [rng.uniform(*limits) for limits in ranges]
        return [(OPS[i], factors[i]) for i in order if getattr(self, OPS[i])]


def parse_color_jitter(spec: str) -> ColorJitter:
    """A recipe such as 'jitter-b0.4-c0.4-s0.4-h0.1'; keys left out are 0.

    Args:
      spec: `jitter`, then any of b (brightness), c (contrast), s (saturation) and h (hue), joined
        by dashes.

    Raises:
      UserError: another policy, no key or an unknown one, or a value out of range.
    """
    policy, *parts = spec.split('-')
    if policy != 'jitter':
        raise _bad_spec(spec, f'policy {policy!r} is unknown')
    if not parts:
        raise _bad_spec(spec, 'nothing says what to change')
    fields = {}
    for part in parts:
        match = re.fullmatch(r'([a-z]+)(\d.*)', part)
        if not match or match[1] not in KEYS:
            raise _bad_spec(spec, f'{part!r} is unknown')
        field, most = KEYS[match[1]]
        try:
            fields[field] = float(match[2])
        except ValueError:
            raise _bad_spec(spec, f'{match[2]!r} in {part!r} is no float') from None
        if fields[field] > most:
            raise _bad_spec(spec, f'{part!r} is not within 0 and {most}')
    return ColorJitter(**fields)


def apply(image: Image.Image, op: str, factor: float) -> Image.Image:
    """One operation, done to an image of mode RGB or L.

    Args:
      op, factor: as `ColorJitter.draw` gives them.
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
    steps = int(turns * 255)  # of 256: as torchvision has it
    hue = hue.point([(v + steps) % 256 for v in range(256)])
    return Image.merge('HSV', (hue, saturation, value)).convert('RGB')


def _bad_spec(spec: str, reason: str) -> UserError:
    return UserError(
        f"dataset.augment={spec!r}: {reason}; give 'jitter' with any of b, c, s and h, e.g. "
        "'jitter-b0.4-c0.4-s0.4-h0.1', or '' for none."
    )
