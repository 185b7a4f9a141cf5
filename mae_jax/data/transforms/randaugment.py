"""RandAugment (Cubuk et al. 2019, arXiv 1909.13719) as timm means `rand-m9-mstd0.5-inc1`.

What to do to an image is drawn apart from doing it: `RandAugment.draw`, then `apply` for each.
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

# Key of a recipe -> field, its type, least and largest value.
KEYS = {
    'm': ('magnitude', int, 0, MAX_LEVEL),
    'mstd': ('std', float, 0, 100),  # above 100 timm means another distribution
    'n': ('num_ops', int, 1, 100),
    'inc': ('increasing', int, 0, 1),
    'p': ('probability', float, 0, 1),
}


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Applies up to `num_ops` random operations to an image, one after another.

    Attributes:
      fill: the colour of what a geometric operation moves in, one value in 0..255 a band.
      num_ops: operations drawn, each uniformly from `OPS`, with replacement.
      magnitude, std: mean and standard deviation of the normal levels, clipped to [0, 10].
      increasing: a higher level always changes the image more.
      probability: of applying each operation that was drawn.
    """

    fill: tuple[int, ...]
    num_ops: int = 2
    magnitude: float = 9
    std: float = 0.5
    increasing: bool = True
    probability: float = 0.5

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The image augmented; its size and mode stay.

        Raises:
          UserError: not a PIL image of mode RGB or L.
        """
        if not isinstance(image, Image.Image) or image.mode not in ('RGB', 'L'):
            raise UserError(
                'RandAugment is defined for 8-bit RGB and grey images, not for '
                f"{_describe(image)}: set dataset.augment=''."
            )
        for op, argument in self.draw(rng):
            image = apply(image, op, argument, self.fill)
        return image

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """The operations to apply to one image, in their order, each with its argument."""
        ops = rng.integers(len(OPS), size=self.num_ops)
        applied = rng.random(self.num_ops) < self.probability
        levels = rng.normal(self.magnitude, self.std, self.num_ops).clip(0, MAX_LEVEL)
        signs = rng.choice((-1, 1), self.num_ops)
        return [
            (OPS[op], argument_of(OPS[op], float(level), int(sign), self.increasing))
            for op, level, sign in zip(ops[applied], levels[applied], signs[applied], strict=True)
        ]


def parse_randaugment(spec: str, mean: Sequence[float], scale: float = 255.0) -> RandAugment:
    """A recipe in timm's notation, such as 'rand-m9-mstd0.5-inc1'.

    Keys left out have timm's defaults: m10, mstd0, n2, inc0, p0.5.

    Args:
      spec: `rand`, then any of m (magnitude), mstd (its standard deviation), n (operations), inc
        (increasing, 0 or 1) and p (probability), joined by dashes.
      mean: of the data set, one value a channel, of images divided by `scale`.
      scale: see `mean`.

    Raises:
      UserError: another policy, an unknown key, a value out of range, or images of neither 1 nor 3
        channels.
    """
    if len(mean) not in (1, 3):
        raise UserError(
            f'dataset.augment={spec!r} is defined for RGB and grey images, not for {len(mean)} '
            "channels: set dataset.augment=''."
        )
    policy, *parts = spec.split('-')
    if policy != 'rand':
        raise _bad_spec(spec, f'policy {policy!r} is unknown')
    fields = {'magnitude': 10, 'std': 0.0, 'num_ops': 2, 'increasing': 0, 'probability': 0.5}
    for part in parts:
        match = re.fullmatch(r'([a-z]+)(\d.*)', part)
        if not match or match[1] not in KEYS:
            raise _bad_spec(spec, f'{part!r} is unknown')
        field, kind, least, most = KEYS[match[1]]
        try:
            fields[field] = kind(match[2])
        except ValueError:
            raise _bad_spec(spec, f'{match[2]!r} in {part!r} is no {kind.__name__}') from None
        if not least <= fields[field] <= most:
            raise _bad_spec(spec, f'{part!r} is not within {least} and {most}')
    fields['increasing'] = bool(fields['increasing'])
    fill = tuple(max(0, min(255, round(scale * value))) for value in mean)
    return RandAugment(fill, **fields)


def argument_of(op: str, level: float, sign: int, increasing: bool) -> float:
    """What a level in [0, 10] means for an operation; 0 for those that take no argument.

    Args:
      op: one of `OPS`.
      level: how strong.
      sign: 1 or -1: the direction, where the operation has two.
      increasing: see `RandAugment`.
    """
    share = level / MAX_LEVEL
    match op:
        case 'Rotate':  # degrees
            return sign * share * 30
        case 'ShearX' | 'ShearY':  # pixels a pixel
            return sign * share * 0.3
        case 'TranslateX' | 'TranslateY':  # share of the width or height
            return sign * share * 0.45
        case 'Color' | 'Contrast' | 'Brightness' | 'Sharpness':  # 1: the image as it is
            return max(0.1, 1 + sign * (share * 0.9)) if increasing else share * 1.8 + 0.1
        case 'Posterize':  # bits kept
            return 4 - int(share * 4) if increasing else int(share * 4)
        case 'Solarize':  # values from here on are inverted
            return 256 - int(share * 256) if increasing else int(share * 256)
        case 'SolarizeAdd':  # added to values below 128
            return int(share * 110)
    return 0


def apply(image: Image.Image, op: str, argument: float, fill: tuple[int, ...]) -> Image.Image:
    """One operation, done to an image of mode RGB or L, with bicubic interpolation.

    Args:
      op, argument: as `RandAugment.draw` gives them.
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
        case 'Posterize':  # not ImageOps.posterize: level 10 keeps no bit, which that one refuses
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


def _describe(image) -> str:
    if isinstance(image, Image.Image):
        return f'mode {image.mode}'
    bands = image.shape[-1]
    return f'{image.dtype} with {bands} {"band" if bands == 1 else "bands"}'


def _bad_spec(spec: str, reason: str) -> UserError:
    return UserError(
        f"dataset.augment={spec!r}: {reason}; give 'rand' with any of m, mstd, n, inc and p, "
        "e.g. 'rand-m9-mstd0.5-inc1', or '' for none."
    )
