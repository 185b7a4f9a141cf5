"""Makes color_jitter.npz with torchvision's ColorJitter and its functions, on PIL images.

    python tests/golden/make_color_jitter.py

Needs torchvision (made with torchvision 0.28 and Pillow 13.0).
"""

from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import ColorJitter, functional

OPS = ('brightness', 'contrast', 'saturation', 'hue')
FACTORS = (0.0, 0.6, 0.837, 1.0, 1.4, 2.5)
SHIFTS = (-0.5, -0.1, -0.0365, 0.0, 0.1, 0.281, 0.5)
STRENGTHS = (0.4, 0.4, 0.4, 0.1)
JITTERS = 12


def picture(bands: int) -> Image.Image:
    """Waves of full range, clipped to black and white here and there, with a grey corner."""
    rng = np.random.default_rng(bands)
    y, x = np.mgrid[:18, :24]
    waves = [np.sin(x / 4 + 2 * band) + np.cos(y / 3 - band) for band in range(bands)]
    pixels = 120 + 85 * np.stack(waves, -1) + rng.normal(0, 12, (18, 24, bands))
    pixels[:4, :6] = pixels[:4, :6, :1]
    pixels = pixels.clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if bands == 1 else pixels)


def single_operations(image: Image.Image) -> dict[str, np.ndarray]:
    """Every operation at some factors."""
    cases = [(op, f) for op in OPS for f in (SHIFTS if op == 'hue' else FACTORS)]
    results = [np.asarray(getattr(functional, f'adjust_{op}')(image, f)) for op, f in cases]
    ops, factors = zip(*cases, strict=True)
    return {'op': np.array(ops), 'factor': np.array(factors), 'result': np.stack(results)}


def jittered(image: Image.Image) -> dict[str, np.ndarray]:
    """The whole transform: which order and which factors it drew, and what it made of them."""
    torch.manual_seed(0)
    jitter = ColorJitter(*STRENGTHS)
    orders, factors, results = [], [], []
    for _ in range(JITTERS):
        drawn = jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
        with mock.patch.object(jitter, 'get_params', lambda *_, drawn=drawn: drawn):
            results.append(np.asarray(jitter(image)))
        orders.append(drawn[0].numpy())
        factors.append(drawn[1:])
    return {
        'jitter/order': np.stack(orders),
        'jitter/factors': np.array(factors),
        'jitter/result': np.stack(results),
    }


def main() -> None:
    golden = {'ops': np.array(OPS)}
    for mode, bands in (('RGB', 3), ('L', 1)):
        image = picture(bands)
        parts = {'image': np.asarray(image)} | single_operations(image) | jittered(image)
        golden |= {f'{mode}/{key}': value for key, value in parts.items()}
    np.savez_compressed(Path(__file__).with_name('color_jitter.npz'), **golden)


if __name__ == '__main__':
    main()
