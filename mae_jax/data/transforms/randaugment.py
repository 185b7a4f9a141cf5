"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719), equal to timm's `rand-m9-mstd0.5-inc1`.

`RandAugment.draw` chooses operations and their arguments; `apply` applies one of them.
"""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from mae_jax.errors import UserError

OPS = (
    'AutoContrast',
    'Equalize',
    'Invert',
    'Rotate',
    'Posterize',
    'Solarize',
    'SolarizeAdd',
    'Color',
    'Contrast',
    'Brightness',
    'Sharpness',
    'ShearX',
    'ShearY',
    'TranslateX',
    'TranslateY',
)
MAX_LEVEL = 10

# Key of a recipe -> field of RandAugment, its type, its least and largest value.
KEYS = {
    'm': ('magnitude', int, 0, MAX_LEVEL),
    'mstd': ('std', float, 0, 100),  # above 100 timm draws from another distribution
    'n': ('num_ops', int, 1, 100),
    'inc': ('increasing', int, 0, 1),
    'p': ('probability', float, 0, 1),
}


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Applies up to `num_ops` random operations to an image, one after another.

    Attributes:
      fill: the colour of pixels from outside of the image, for each band a value in 0 ... 255.
      num_ops: how many operations are drawn, uniformly from `OPS`, with replacement.
      magnitude, std: mean and standard deviation of the level of an operation, which is normally
        distributed and clipped to [0, 10].
      increasing: whether a higher level always changes the image more.
      probability: of applying an operation that was drawn.
    """

    fill: tuple[int, ...]
    num_ops: int = 2
    magnitude: float = 9
    std: float = 0.5
    increasing: bool = True
    probability: float = 0.5

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Returns an augmented image of the same size and mode.

        Raises:
          UserError: the image is not a Pillow image of mode RGB or L.
        """
        if not isinstance(image, Image.Image) or image.mode not in ('RGB', 'L'):
            raise UserError(
                'RandAugment is defined for 8-bit RGB and grey images, not for '
                f"{_kind_of(image)}: set dataset.augment=''."
            )
        for op, argument in self.draw(rng):
            image = apply(image, op, argument, self.fill)
        return image

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Draws the operations for one image, in the order to apply them: (name, argument)."""
        ops = rng.integers(len(OPS), size=self.num_ops)
        applied = rng.random(self.num_ops) < self.probability
        levels = rng.normal(self.magnitude, self.std, self.num_ops).clip(0, MAX_LEVEL)
        signs = rng.choice((-1, 1), self.num_ops)
        return [
            (OPS[op], argument_of(OPS[op], float(level), int(sign), self.increasing))
            for op, level, sign in zip(ops[applied], levels[applied], signs[applied], strict=True)
        ]


def parse_randaugment(spec: str, mean: Sequence[float], scale: float = 255.0) -> RandAugment:
    """Parses a recipe in timm's notation, such as 'rand-m9-mstd0.5-inc1'.

    Keys that are missing have timm's defaults: m10, mstd0, n2, inc0, p0.5.

    Args:
      spec: `rand`, then any of m (magnitude), mstd (its standard deviation), n (operations), inc
        (increasing, 0 or 1) and p (probability), joined by dashes.
      mean: of each channel of the data set, of images divided by `scale`; it is the fill colour.
      scale: the pixel value that stands for 1.

    Raises:
      UserError: the policy or a key is unknown, a value is out of range, or there are neither 1
        nor 3 channels.
    """
    if len(mean) not in (1, 3):
        raise UserError(
            f'dataset.augment={spec!r} is defined for RGB and grey images, not for {len(mean)} '
            "channels: set dataset.augment=''."
        )
    policy, *settings = spec.split('-')
    if policy != 'rand':
        raise _bad_spec(spec, f'policy {policy!r} is unknown')
    fields = {'magnitude': 10, 'std': 0.0, 'num_ops': 2, 'increasing': 0, 'probability': 0.5}
    for setting in settings:
        match = re.fullmatch(r'([a-z]+)(\d.*)', setting)
        if not match or match[1] not in KEYS:
            raise _bad_spec(spec, f'{setting!r} is unknown')
        field, kind, least, most = KEYS[match[1]]
        try:
            fields[field] = kind(match[2])
        except ValueError:
            raise _bad_spec(spec, f'{match[2]!r} in {setting!r} is no {kind.__name__}') from None
        if not least <= fields[field] <= most:
            raise _bad_spec(spec, f'{setting!r} is not within {least} and {most}')
    fields['increasing'] = bool(fields['increasing'])
    fill = tuple(max(0, min(255, round(scale * value))) for value in mean)
    return RandAugment(fill, **fields)


def argument_of(op: str, level: float, sign: int, increasing: bool) -> float:
    """Converts the level of an operation to its argument; 0 for operations without an argument.

    Args:
      op: one of `OPS`.
      level: the strength, in [0, 10].
      sign: 1 or -1, the direction of an operation that has two.
      increasing: see `RandAugment`.

    Returns:
      The argument in the unit of the operation, see the comments below.
    """
    share = level / MAX_LEVEL
    match op:
        case 'Rotate':  # degrees
            return sign * share * 30
        case 'ShearX' | 'ShearY':  # pixels of shift per pixel
            return sign * share * 0.3
        case 'TranslateX' | 'TranslateY':  # share of the width or height
            return sign * share * 0.45
        case 'Color' | 'Contrast' | 'Brightness' | 'Sharpness':  # a factor; 1 is the identity
            return max(0.1, 1 + sign * (share * 0.9)) if increasing else share * 1.8 + 0.1
        case 'Posterize':  # bits kept
            return 4 - int(share * 4) if increasing else int(share * 4)
        case 'Solarize':  # the threshold from which on values are inverted
            return 256 - int(share * 256) if increasing else int(share * 256)
        case 'SolarizeAdd':  # added to values below 128
            return int(share * 110)
    return 0


def apply(image: Image.Image, op: str, argument: float, fill: tuple[int, ...]) -> Image.Image:
    """Applies one operation to an image of mode RGB or L, with bicubic interpolation.

    Args:
      image: stays unchanged.
      op, argument: as `RandAugment.draw` returns them.
      fill: see `RandAugment`.
    """
    match op:
        case 'AutoContrast':
            return ImageOps.autocontrast(image)
        case 'Equalize':
            return ImageOps.equalize(image)
        case 'Invert':
            return ImageOps.invert(image)
        case 'Solarize':
            return ImageOps.solarize(image, argument)
        case 'SolarizeAdd':
            return _map_values(
                image, [min(255, v + argument) if v < 128 else v for v in range(256)]
            )
        case 'Posterize':  # ImageOps.posterize refuses to keep no bit, as level 10 does
            return _map_values(image, [v >> (8 - argument) << (8 - argument) for v in range(256)])
        case 'Color' | 'Contrast' | 'Brightness' | 'Sharpness':
            return getattr(ImageEnhance, op)(image).enhance(argument)
        case 'Rotate':
            return image.rotate(argument, Image.Resampling.BICUBIC, fillcolor=fill)
        case 'ShearX':
            return _affine(image, (1, argument, 0, 0, 1, 0), fill)
        case 'ShearY':
            return _affine(image, (1, 0, 0, argument, 1, 0), fill)
        case 'TranslateX':
            return _affine(image, (1, 0, argument * image.width, 0, 1, 0), fill)
        case 'TranslateY':
            return _affine(image, (1, 0, 0, 0, 1, argument * image.height), fill)
    raise ValueError(f'{op!r} is none of {OPS}')


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: tuple[int, ...]) -> Image.Image:
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill
    )


def _map_values(image: Image.Image, table: list[int]) -> Image.Image:
    return image.point(table * len(image.getbands()))


def _kind_of(image) -> str:
    if isinstance(image, Image.Image):
        return f'mode {image.mode}'
    bands = image.shape[-1]
    return f'{image.dtype} with {bands} {"band" if bands == 1 else "bands"}'


def _bad_spec(spec: str, reason: str) -> UserError:
    return UserError(
        f"dataset.augment={spec!r}: {reason}; give 'rand' with any of m, mstd, n, inc and p, "
        "e.g. 'rand-m9-mstd0.5-inc1', or '' for none."
    )
