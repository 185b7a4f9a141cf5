"""What happens to an image on the host: numpy in, numpy out, the pixels of the original pipeline.

A result depends on (record, seed, epoch, index) alone, so that neither the order of the work nor
the process that does it changes a pixel. Normalisation happens on the device.
"""

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
from mae_jax.data.transforms.randaugment import RandAugment

Augment = RandAugment | ColorJitter

# The purposes of the random numbers drawn here; the order of examples has grain's.
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
    apply_exif: bool = False,
    crop: str = 'retry',
    augment: Augment | None = None,
    repeats: int = 1,
) -> dict[str, np.ndarray]:
    """Decode, then `repeats` times RandomResizedCrop, horizontal flip and augmentation.

    (He et al. 2021, appendix A.1; several views of one decoded image: Feichtenhofer et al. 2022,
    arXiv 2205.09113, section 3.)

    Args:
      crop_scale, crop_ratio: of the crops that are resized, 'retry' and 'clamp'.
      crop: see `crops.train_crop`.
      augment: applied last; it draws random numbers of its own, so crops and flips stay as they are
        without it.
      repeats: views, r. The first is the one that there is without repeats.

    Returns:
      `{'image': [r,H,W,C]}`, uint8 or the source's own dtype.

    Raises:
      BadImage: the image cannot be read.
      UserError: it is not one that `augment` is defined for.
    """
    image = decode(record, channels, apply_exif, lazily=True)
    if repeats > 1:
        image = decoded(image)
    views = []
    for view in range(repeats):
        rng = _generator(seed, CROP_AND_FLIP, epoch, index, view)
        pixels = train_crop(image, crop, image_size, rng, crop_scale, crop_ratio)
        if flip and rng.random() < 0.5:
            pixels = mirrored(pixels)
        if augment:
            pixels = _augmented(pixels, augment, _generator(seed, AUGMENT, epoch, index, view))
        views.append(pixels)
    return {'image': np.stack(views)}


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
    apply_exif: bool = False,
    crop: str = 'retry',
    repeats: int = 1,
) -> dict[str, np.ndarray]:
    """The whole image, and where it is to be cropped and flipped: the device does the rest.

    `tasks.preprocess.crop_and_resize` makes of it what `train_views` makes, but for rounding, where
    the image fits on the canvas. A larger one is reduced until it does.

    Args:
      crop: 'retry' or 'clamp'.
      canvas: side of the square that carries the image, S.
      others: as of `train_views`.

    Returns:
      `{'canvas': [1,S,S,C], the image at its upper left, uint8 or the source's own dtype,
      'box': int32 [r,5]: left, top, width, height, and 1 to flip}`.

    Raises:
      BadImage: the image cannot be read.
    """
    image = decode(record, channels, apply_exif, lazily=True)
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
        rng = _generator(seed, CROP_AND_FLIP, epoch, index, view)
        box = BOXES[crop](width, height, rng, crop_scale, crop_ratio)
        boxes.append((*box, flip and rng.random() < 0.5))
    carrier = np.zeros((1, canvas, canvas, channels), pixels.dtype)
    carrier[0, :height, :width] = pixels
    return {'canvas': carrier, 'box': np.array(boxes, np.int32)}


def _generator(seed: int, purpose: int, epoch: int, index: int, view: int) -> np.random.Generator:
    """The first view has the numbers that it has where there are no others."""
    return np.random.default_rng((seed, purpose, epoch, index, view)[: 5 if view else 4])


def _augmented(pixels: np.ndarray, augment: Augment, rng: np.random.Generator) -> np.ndarray:
    picture = pixels
    if pixels.dtype == np.uint8 and pixels.shape[-1] in (1, 3):
        picture = as_picture(pixels)
    return np.asarray(augment(picture, rng)).reshape(pixels.shape)


def eval_transform(
    record: dict,
    *,
    image_size: Size,
    channels: int,
    apply_exif: bool = False,
    crop_share: float | None = None,
) -> np.ndarray:
    """Decode, resize, centre crop: see `crops.center_crop`.

    Returns:
      [H,W,C], uint8 or the source's own dtype.

    Raises:
      BadImage: the image cannot be read.
    """
    image = decode(record, channels, apply_exif, lazily=True)
    return np.ascontiguousarray(center_crop(image, image_size, crop_share))
