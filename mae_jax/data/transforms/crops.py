"""Crops of training and evaluation images, resized with Pillow's antialiased bicubic."""

import math

import numpy as np
from PIL import Image

from mae_jax.data.images.arrays import as_array
from mae_jax.data.images.decode import BadImage, LazyJpeg, decode
from mae_jax.data.images.jpeg import CropBox, Size, crop_jpeg, decode_jpeg, resize
from mae_jax.data.images.limits import check_pixels

Picture = Image.Image | LazyJpeg | np.ndarray
"""What `decode` returns; an array is [H, W, C]."""

EVAL_CROP_SHARE = 224 / 256
CROPS = ('retry', 'clamp', 'fixed', 'center')


def train_crop(
    image: Picture,
    crop: str,
    size: Size,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Crops and resizes an image for training.

    Args:
      image: as `decode` returns it.
      crop: the kind of crop. The first two crop and then resize, the others resize and then crop.
        'retry': torchvision's RandomResizedCrop; see `random_resized_crop_box`.
        'clamp': that of the original linear probe; see `clamped_crop_box`.
        'fixed': a crop of one size at a random position; see `fixed_size_crop`.
        'center': the crop of evaluation whose crop share is not set; see `center_crop`.
      size: (height, width) of the result in pixels.
      rng: of the position, and of the size for 'retry' and 'clamp'.
      scale: least and largest share of the image's area, for 'retry' and 'clamp'.
      ratio: least and largest width / height, for 'retry' and 'clamp'.

    Returns:
      [H, W, C] of the dtype of the image; not always contiguous.

    Raises:
      BadImage: a JPEG is damaged after its header, or the resized image would be too large.
    """
    if crop in BOXES:
        box = BOXES[crop](*width_height(image), rng, scale, ratio)
        return resize_crop(image, box, size)
    match crop:
        case 'fixed':
            return fixed_size_crop(image, size, rng)
        case 'center':
            return center_crop(image, size)
    raise ValueError(f'{crop!r} is none of {CROPS}')


def random_resized_crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> CropBox:
    """Draws the crop of torchvision's RandomResizedCrop.

    It draws a share of the area, uniform in `scale`, and a width / height, log-uniform in `ratio`,
    until the crop fits into the image, at most ten times; after that it takes the largest central
    crop of an allowed ratio.
    """
    for _ in range(10):
        w, h = _draw_sides(width * height, rng, scale, ratio)
        if 0 < w <= width and 0 < h <= height:
            return _draw_position(width, height, w, h, rng)
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (width - w) // 2, (height - h) // 2, w, h


def clamped_crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> CropBox:
    """Draws the crop of the original linear probe.

    Share and ratio are drawn once, as in `random_resized_crop_box`. A side longer than the image's
    is shortened to it, so that the share or the ratio may be outside of its range.
    """
    w, h = _draw_sides(width * height, rng, scale, ratio)
    return _draw_position(width, height, max(1, min(w, width)), max(1, min(h, height)), rng)


BOXES = {'retry': random_resized_crop_box, 'clamp': clamped_crop_box}
"""The kinds of crops that are cropped first and then resized."""


def _draw_sides(
    area: int, rng: np.random.Generator, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int]:
    """Draws the width and height of a crop, which may be larger than the image."""
    area = area * rng.uniform(*scale)
    aspect = math.exp(rng.uniform(*np.log(ratio)))
    return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))


def _draw_position(width: int, height: int, w: int, h: int, rng: np.random.Generator) -> CropBox:
    top = int(rng.integers(height - h + 1))
    left = int(rng.integers(width - w + 1))
    return left, top, w, h


def fixed_size_crop(image: Picture, size: Size, rng: np.random.Generator) -> np.ndarray:
    """Resizes and then crops at a uniformly random position: torchvision's Resize and RandomCrop.

    The crop is 224/256 of the resized image's short side at any `size`, so that it can move.
    """
    pixels = _resize_to_cover(image, size, EVAL_CROP_SHARE)
    height, width = pixels.shape[:2]
    left, top, _, _ = _draw_position(width, height, size[1], size[0], rng)
    return pixels[top : top + size[0], left : left + size[1]]


def center_crop(image: Picture, size: Size, share: float | None = None) -> np.ndarray:
    """Resizes and then crops the centre: torchvision's Resize and CenterCrop.

    Args:
      image: as `decode` returns it.
      size: (height, width) of the result in pixels.
      share: of the resized image's short side that is kept. None is the original's: 224/256 up to
        224 pixels, 1 for larger sizes.

    Returns:
      [H, W, C] of the dtype of the image; not always contiguous.

    Raises:
      BadImage: as of `train_crop`.
    """
    pixels = _resize_to_cover(image, size, _eval_share(size, share))
    top, left = _center(pixels.shape[:2], size)
    return pixels[top : top + size[0], left : left + size[1]]


def center_crop_place(
    width: int, height: int, size: Size, share: float | None = None
) -> tuple[Size, tuple[int, int]]:
    """Returns the (height, width) that `center_crop` resizes to, and (top, left) of its crop."""
    resized = _cover(width, height, size, _eval_share(size, share))
    return resized, _center(resized, size)


def _eval_share(size: Size, share: float | None) -> float:
    return share or (EVAL_CROP_SHARE if max(size) <= 224 else 1.0)


def _center(resized: Size, size: Size) -> tuple[int, int]:
    return round((resized[0] - size[0]) / 2), round((resized[1] - size[1]) / 2)


def resize_crop(image: Picture, box: CropBox, size: Size) -> np.ndarray:
    """Crops, *then* resizes with Pillow's antialiased bicubic, to [H, W, C] of the same dtype.

    Pillow's `resize(box=...)` would mix pixels outside of the crop into its border. Arrays that are
    not grey or RGB of 8 bits are resized band by band: 8 bits as they are (as RGBA, Pillow would
    blend them by alpha), other dtypes as float32, rounded back to integers.

    Raises:
      BadImage: a JPEG is damaged after its header.
    """
    if isinstance(image, LazyJpeg):
        pixels = crop_jpeg(image.record['image'], image.channels, box, size)
        if pixels is not None:
            return pixels
        image = decode(image.record, image.channels)  # damaged: Pillow reads it or raises
    left, top, width, height = box
    if isinstance(image, Image.Image):
        crop = image.crop((left, top, left + width, top + height))
        return as_array(crop.resize(size[::-1], Image.Resampling.BICUBIC))
    crop = image[top : top + height, left : left + width]
    if crop.dtype == np.uint8 and crop.shape[-1] in (1, 3):
        return resize(crop, size)
    return resize_bands(crop, size, Image.Resampling.BICUBIC)


def resize_bands(
    pixels: np.ndarray,
    size: Size,
    method: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resizes [H, W, C] of any dtype with Pillow, each band by itself, to the same dtype.

    With `box`, (left, top, right, bottom), that part of it.
    """
    bands = [_resize_band(pixels[..., i], size, method, box) for i in range(pixels.shape[-1])]
    return np.stack(bands, axis=-1)


def _resize_band(
    band: np.ndarray,
    size: Size,
    method: Image.Resampling,
    box: tuple[float, float, float, float] | None,
) -> np.ndarray:
    dtype = band.dtype
    band = np.ascontiguousarray(band if dtype == np.uint8 else band.astype(np.float32))
    resized = np.asarray(Image.fromarray(band).resize(size[::-1], method, box))
    if dtype.kind in 'ui' and dtype != np.uint8:  # bicubic overshoots: do not wrap around
        limits = np.iinfo(dtype)
        resized = np.clip(np.rint(resized.astype(np.float64)), limits.min, limits.max)
    return resized.astype(dtype)


def _resize_to_cover(image: Picture, size: Size, share: float) -> np.ndarray:
    """Resizes the whole image so that a crop of `size` is `share` of its short side.

    The result keeps the proportions of the image and is the smallest that covers the rectangle
    `size / share`: for a square, torchvision's Resize(short side).
    """
    width, height = width_height(image)
    resized = _cover(width, height, size, share)
    try:
        check_pixels(*resized)
    except ValueError as error:
        raise BadImage(
            f'an image of {width} x {height} pixels is too long: with its short side resized to '
            f'{min(resized)} it would have {error}.'
        ) from error
    return resize_crop(image, (0, 0, width, height), resized)


def _cover(width: int, height: int, size: Size, share: float) -> Size:
    """Returns the smallest (height, width) of the same proportions that covers `size / share`.

    It is rounded as in torchvision.
    """
    rows, columns = (int(side / share) for side in size)
    if height * columns >= width * rows:
        return columns * height // width, columns
    return rows, rows * width // height


def decoded(image: Picture) -> Image.Image | np.ndarray:
    """Decodes a lazy JPEG that is used more than once; returns other pictures unchanged."""
    if not isinstance(image, LazyJpeg):
        return image
    pixels = decode_jpeg(image.record['image'], image.channels)
    return decode(image.record, image.channels) if pixels is None else pixels


def width_height(image: Picture) -> tuple[int, int]:
    """Returns (width, height) in pixels."""
    return image.shape[1::-1] if isinstance(image, np.ndarray) else image.size
