"""What `fuzzing.py` does to images: small ones of every kind, mutated, decoded and cropped."""

import io
import os
import random
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image

from helpers import fuzzing
from helpers.images import deep_png, encode
from mae_jax.data.images.decode import BadImage
from mae_jax.data.transforms.crops import CROPS
from mae_jax.data.transforms.views import eval_transform, train_views
from mae_jax.errors import UserError

ACCEPTED = (BadImage, UserError)
SIZE = (16, 16)


class State(NamedTuple):
    seeds: dict[str, bytes]
    weights: dict[str, int]
    folder: Path


class Case(NamedTuple):
    name: str
    data: bytes
    channels: int
    crop: str
    apply_exif: bool
    evaluation: bool

    def __repr__(self) -> str:
        return f'{self.name}, {len(self.data)} bytes, {self[2:]}'


def prepare(folder: Path) -> State:
    os.environ['PYTHONWARNINGS'] = 'ignore'
    warnings.simplefilter('ignore')
    import logging

    logging.disable()
    seeds = make_seeds()
    weights = {name: 20 if name.startswith(('jpeg', 'png')) else 4 for name in seeds}
    state = State(seeds, weights, folder)
    for name, data in seeds.items():  # every one is read as it is, and every library imported
        channels = 5 if name == 'tiff_five_bands' else 1 if name.startswith('npy_deep') else 3
        read(state, Case(name, data, channels, 'retry', True, False))
    return state


def make(state: State, rng: random.Random) -> Case:
    name, data = fuzzing.case_bytes(rng, state.seeds, state.weights)
    channels = rng.choice((3, 3, 3, 1, 4, 5 if 'five' in name else 2))
    return Case(name, data, channels, rng.choice(CROPS), rng.random() < 0.5, rng.random() < 0.3)


def read(state: State, case: Case) -> None:
    record = {'image': case.data, 'name': case.name, 'label': 0}
    options = dict(image_size=SIZE, channels=case.channels, apply_exif=case.apply_exif)
    if case.evaluation:
        pixels = eval_transform(record, **options)
    else:
        (pixels,) = train_views(
            record,
            seed=0,
            epoch=0,
            index=0,
            crop_scale=(0.2, 1.0),
            crop_ratio=(0.75, 4 / 3),
            flip=True,
            crop=case.crop,
            **options,
        )['image']
    assert pixels.shape == (*SIZE, case.channels), pixels.shape


def leftovers(state: State) -> list[str]:
    return os.listdir(state.folder) + os.listdir('.')


def make_seeds() -> dict[str, bytes]:
    """Name -> a small file, of the kinds that there are."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (4, 6, 3), np.uint8)
    picture = Image.fromarray(colours).resize((40, 28), Image.Resampling.BICUBIC)
    grey, deep = picture.convert('L'), np.asarray(picture.convert('L')).astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, 'a picture'
    frames = [picture.rotate(90 * i) for i in range(3)]
    several = dict(save_all=True, append_images=frames[1:])
    text = {'icc_profile': bytes(range(256)) * 4}
    rgba, turned = np.asarray(picture.convert('RGBA')), (274, 'H', 1, 6, True)
    seeds = {
        'jpeg': encode(picture, 'JPEG'),
        'jpeg_progressive': encode(picture, 'JPEG', progressive=True, exif=exif),
        'jpeg_grey': encode(grey, 'JPEG', exif=exif, **text),
        'jpeg_cmyk': encode(picture.convert('CMYK'), 'JPEG'),
        'png': encode(picture, 'PNG'),
        'png_rgba': encode(picture.convert('RGBA'), 'PNG', exif=exif, **text),
        'png_palette': encode(picture.quantize(16), 'PNG', transparency=b'\x00\x80'),
        'png_deep': encode(Image.fromarray(deep), 'PNG'),
        'png_bits': encode(grey.convert('1'), 'PNG'),
        'png_animated': encode(picture, 'PNG', **several),
        'webp': encode(picture, 'WEBP', exif=exif),
        'webp_lossless': encode(picture.convert('RGBA'), 'WEBP', lossless=True),
        'webp_animated': encode(picture, 'WEBP', **several),
        'gif': encode(picture.quantize(32), 'GIF'),
        'gif_animated': encode(picture, 'GIF', **several),
        'bmp': encode(picture, 'BMP'),
        'bmp_palette': encode(picture.quantize(16), 'BMP'),
        'mpo': encode(picture, 'MPO', **several),
        'tiff': encode(picture, 'TIFF'),
        'tiff_lzw': encode(picture, 'TIFF', compression='tiff_lzw'),
        'tiff_jpeg': encode(picture, 'TIFF', compression='jpeg'),
        'tiff_pages': encode(grey, 'TIFF', save_all=True, append_images=[grey, grey]),
        'tiff_deep': tiff(np.stack([deep] * 3, -1), photometric='rgb'),
        'tiff_deflate': tiff(np.stack([deep] * 3, -1), photometric='rgb', compression='zlib'),
        'tiff_tiles': tiff(np.stack([deep] * 3, -1), photometric='rgb', tile=(16, 16)),
        'tiff_five_bands': tiff(np.stack([deep] * 5), photometric='minisblack'),
        'tiff_big': tiff(np.asarray(picture), photometric='rgb', bigtiff=True),
        'tiff_infrared': tiff(rgba, photometric='rgb', extrasamples=(0,)),
        'tiff_turned': tiff(rgba, photometric='rgb', extrasamples=(1,), extratags=[turned]),
        'tiff_white': tiff(deep, photometric='miniswhite'),
        'png_deep_colours': deep_png(np.stack([deep] * 3, -1)),
        'png_deep_alpha': deep_png(np.stack([deep] * 2, -1)),
        'ppm': encode(picture, 'PPM'),
        'ppm_deep': b'P6 40 28 65535\n' + np.stack([deep] * 3, -1).astype('>u2').tobytes(),
        'pgm_text': b'P2 4 2 255\n' + b'1 2 3 4 ' * 2,
        'jp2': encode(picture, 'JPEG2000'),
        'jp2_deep': encode(Image.fromarray(deep), 'JPEG2000', no_jp2=True),
        'avif': encode(picture, 'AVIF', exif=exif),
        'npy': npy(np.asarray(picture)),
        'npy_deep': npy(deep),
        'npy_float': npy(np.asarray(picture).astype(np.float32)),
    }
    return seeds


def tiff(array: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()
