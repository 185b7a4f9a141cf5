"""Makes randaugment.npz with timm's `rand-m9-mstd0.5-inc1`, as its transform factory sets it up.

    python tests/golden/make_randaugment.py

Needs timm and torchvision (made with timm 1.0.31, torchvision 0.28 and Pillow 13.0).
"""

import functools
import random
from pathlib import Path

import numpy as np
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, auto_augment, create_transform

SPEC = 'rand-m9-mstd0.5-inc1'
PIXEL_LEVELS = (2.0, 9.3, 10.0)
ARGUMENT_LEVELS = np.linspace(0, 10, 81)
QUANTILES = np.linspace(0.02, 0.98, 13)
DRAWS = 60_000
ONE_VALUED = ('AutoContrast', 'Equalize', 'Invert')


def rand_augment(mean, spec: str = SPEC) -> auto_augment.RandAugment:
    """The RandAugment inside the training transform of timm."""
    transform = create_transform(
        224,
        is_training=True,
        auto_augment=spec,
        interpolation='bicubic',
        mean=mean,
        std=(0.25,) * len(mean),
    )
    return next(t for t in transform.transforms if isinstance(t, auto_augment.RandAugment))


def plain(name: str) -> str:
    """timm's name of an operation without the words that tell its variants apart."""
    return name.removesuffix('Increasing').removesuffix('Rel')


def fix_sign(sign: int) -> None:
    auto_augment._randomly_negate = lambda value: sign * value


def picture(bands: int) -> Image.Image:
    """Smooth with some noise, neither black nor white in it: every operation has an effect."""
    rng = np.random.default_rng(bands)
    y, x = np.mgrid[:24, :32]
    waves = [np.sin(x / 5 + band) + np.cos(y / 4 - band) for band in range(bands)]
    pixels = 120 + 35 * np.stack(waves, -1) + rng.normal(0, 8, (24, 32, bands))
    pixels = pixels.clip(20, 230).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if bands == 1 else pixels)


def pixels(bands: int, mean) -> dict[str, np.ndarray]:
    """Every operation at some levels and both signs; timm's random parts are taken out."""
    image = picture(bands)
    cases, results = [], []
    for op in rand_augment(mean).ops:
        op.prob, op.magnitude_std = 1.0, 0
        for level in (0.0,) if op.name in ONE_VALUED else PIXEL_LEVELS:
            if op.name == 'PosterizeIncreasing' and level == 10:  # no bit kept: Pillow refuses it
                continue
            for sign in (1, -1):
                fix_sign(sign)
                op.magnitude = level
                result = np.asarray(op(image))
                last = cases and cases[-1][:2] == (plain(op.name), level)
                if last and (results[-1] == result).all():  # an operation of one direction
                    continue
                cases.append((plain(op.name), level, sign))
                results.append(result)
    names, levels, signs = zip(*cases, strict=True)
    return {
        'image': np.asarray(image),
        'op': np.array(names),
        'level': np.array(levels),
        'sign': np.array(signs),
        'result': np.stack(results),
    }


def arguments(spec: str) -> np.ndarray:
    """[op, level, sign (+, -)]: what timm makes of a level; 0 where the operation takes nothing."""
    table = np.zeros((15, len(ARGUMENT_LEVELS), 2))
    for row, op in zip(table, rand_augment(IMAGENET_DEFAULT_MEAN, spec).ops, strict=True):
        for column, sign in enumerate((1, -1)):
            fix_sign(sign)
            for i, level in enumerate(ARGUMENT_LEVELS):
                row[i, column] = op.level_fn(level, op.hparams)[0] if op.level_fn else 0
    return table


def draws() -> dict[str, np.ndarray]:
    """What timm draws for many images: which operations, how many, with what arguments."""
    augment = rand_augment(IMAGENET_DEFAULT_MEAN)
    image, log = Image.new('RGB', (8, 8)), []

    def record(name, image, *args, **_):
        log.append((name, *args))
        return image

    for op in augment.ops:
        op.aug_fn = functools.partial(record, plain(op.name))
    random.seed(0)
    np.random.seed(0)
    counts = np.zeros(3, int)
    twice = 0
    values = {plain(op.name): [] for op in augment.ops}
    for _ in range(DRAWS):
        log.clear()
        augment(image)
        counts[len(log)] += 1
        twice += len(log) == 2 and log[0][0] == log[1][0]
        for name, *args in log:
            values[name].append(args[0] if args else 0)
    return {
        'applied_per_image': counts / DRAWS,
        'same_twice': twice / DRAWS,
        'op_share': np.array([len(v) for v in values.values()]) / DRAWS,
        'quantiles': np.array([np.quantile(v, QUANTILES) for v in values.values()]),
    }


def main() -> None:
    golden = {f'draws/{k}': v for k, v in draws().items()}  # before any sign is fixed
    golden['names'] = np.array([plain(op.name) for op in rand_augment(IMAGENET_DEFAULT_MEAN).ops])
    golden['fill'] = np.array(rand_augment(IMAGENET_DEFAULT_MEAN).ops[0].kwargs['fillcolor'])
    golden['quantiles'] = QUANTILES
    golden['levels'] = ARGUMENT_LEVELS
    golden['arguments/inc1'] = arguments(SPEC)
    golden['arguments/inc0'] = arguments('rand-m9-mstd0.5')
    golden |= {f'RGB/{k}': v for k, v in pixels(3, IMAGENET_DEFAULT_MEAN).items()}
    golden |= {f'L/{k}': v for k, v in pixels(1, (0.449,)).items()}
    np.savez_compressed(Path(__file__).with_name('randaugment.npz'), **golden)


if __name__ == '__main__':
    main()
