"""Transforms of an example on the host, with the pixels of the original pipeline.

A result depends on (record, seed, epoch, index) alone, so that neither the order of the work nor
the process that does it changes a pixel. Normalisation is done on the device.
"""

from typing import Any

import numpy as np

from mae_jax.data.images.arrays import as_array, as_picture, mirrored
from mae_jax.data.images.decode import decode
from mae_jax.data.transforms.color_jitter import ColorJitter
from mae_jax.data.transforms.crops import (
    BOXES,
    Size,
    center_crop,
    decoded,
    resize_crop,
    train_crop,
    width_height,
)
from mae_jax.data.transforms.photometric import PhotometricDistortion
from mae_jax.data.transforms.randaugment import RandAugment

Augment = RandAugment | ColorJitter | PhotometricDistortion

# Each use of random numbers has a stream of its own. `loader/memory.py` uses 3; the order of the
# examples is grain's.
CROP_AND_FLIP, AUGMENT = 1, 2


def train_views(
    record: dict,
    *,
    seed: int,
    epoch: int,
    index: int,
    image_size: Size,
    channels: int,
    crop_scale: tuple[float, float],
    crop_ratio: tuple[float, float],
    flip: bool,
    crop: str = 'retry',
    augment: Augment | None = None,
    repeats: int = 1,
    **reading: Any,
) -> dict[str, np.ndarray]:
    """Decodes an image and makes `repeats` random views: crop, horizontal flip, augmentation.

    (He et al. 2021, appendix A.1; several views of one decoded image: Feichtenhofer et al. 2022,
    arXiv 2205.09113, section 3.)

    Args:
      record: an example of a source.
      seed, epoch, index: what the random numbers depend on.
      image_size: (H, W) of a view in pixels.
      channels: C.
      crop, crop_scale, crop_ratio: see `crops.train_crop`.
      flip: whether to mirror each view with a probability of 1/2.
      augment: applied last. Its random numbers are of another stream, so that it does not change
        crops and flips.
      repeats: number of views, r. The first view is the same for any number.
      **reading: arguments of `decode`: apply_exif, bands, nodata.

    Returns:
      `{'image': [r, H, W, C]}`, uint8 or the dtype of the source.

    Raises:
      BadImage: the image cannot be read.
      UserError: `augment` is not defined for images of this kind.
    """
    image = decode(record, channels, lazily=True, **reading)
    if repeats > 1:
        image = decoded(image)
    views = []
    for view in range(repeats):
        rng = generator(seed, CROP_AND_FLIP, epoch, index, view)
        pixels = train_crop(image, crop, image_size, rng, crop_scale, crop_ratio)
        if flip and rng.random() < 0.5:
            pixels = mirrored(pixels)
        if augment:
            pixels = augmented(pixels, augment, generator(seed, AUGMENT, epoch, index, view))
        views.append(pixels)
    return {'image': np.stack(views) if repeats > 1 else views[0][None]}


def train_canvas(
    record: dict,
    *,
    seed: int,
    epoch: int,
    index: int,
    channels: int,
    crop_scale: tuple[float, float],
    crop_ratio: tuple[float, float],
    flip: bool,
    canvas: int,
    crop: str = 'retry',
    repeats: int = 1,
    **reading: Any,
) -> dict[str, np.ndarray]:
    """Decodes an image and draws the crops and flips that the device applies to it.

    `tasks.preprocess.crop_and_resize` makes the views of `train_views` from it, except for
    rounding. An image that is larger than the canvas is first resized to fit on it.

    Args:
      crop: 'retry' or 'clamp'.
      canvas: S, the side in pixels of the square array that holds the image.
      record, seed, epoch, index, channels, crop_scale, crop_ratio, flip, repeats, **reading: see
        `train_views`.

    Returns:
      `{'canvas': [1, S, S, C], 'box': int32 [r, 5]}`: the image, of uint8 or the dtype of the
      source, at the upper left of zeros; and for each view left, top, width, height of its crop in
      pixels of the canvas, and 1 where it is to be mirrored.

    Raises:
      BadImage: the image cannot be read.
    """
    image = decode(record, channels, lazily=True, **reading)
    width, height = width_height(image)
    if max(width, height) > canvas:
        share = canvas / max(width, height)
        size = max(1, round(height * share)), max(1, round(width * share))
        pixels = resize_crop(image, (0, 0, width, height), size)
    else:
        pixels = as_array(decoded(image))
    height, width = pixels.shape[:2]
    boxes = []
    for view in range(repeats):
        rng = generator(seed, CROP_AND_FLIP, epoch, index, view)
        box = BOXES[crop](width, height, rng, crop_scale, crop_ratio)
        boxes.append((*box, flip and rng.random() < 0.5))
    padded = np.zeros((1, canvas, canvas, channels), pixels.dtype)
    padded[0, :height, :width] = pixels
    return {'canvas': padded, 'box': np.array(boxes, np.int32)}


def generator(seed: int, purpose: int, epoch: int, index: int, view: int) -> np.random.Generator:
    """Returns the random numbers of a view; those of view 0 do not depend on the view number."""
    return np.random.default_rng((seed, purpose, epoch, index, view)[: 5 if view else 4])


def augmented(pixels: np.ndarray, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    picture = pixels
    if pixels.dtype == np.uint8 and pixels.shape[-1] in (1, 3):
        picture = as_picture(pixels)
    return np.asarray(augment(picture, rng)).reshape(pixels.shape)


def eval_transform(
    record: dict,
    *,
    image_size: Size,
    channels: int,
    crop_share: float | None = None,
    **reading: Any,
) -> np.ndarray:
    """Decodes and resizes an image and crops its centre, for evaluation.

    Args:
      record: an example of a source.
      image_size: (H, W) of the result in pixels.
      channels: C.
      crop_share: see `crops.center_crop`.
      **reading: arguments of `decode`: apply_exif, bands, nodata.

    Returns:
      [H, W, C], contiguous, uint8 or the dtype of the source.

    Raises:
      BadImage: the image cannot be read.
    """
    image = decode(record, channels, lazily=True, **reading)
    return np.ascontiguousarray(center_crop(image, image_size, crop_share))
