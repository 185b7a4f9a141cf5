"""Pairs of an image and its mask -> training crops, and whole images for evaluation.

A training batch of `loader` is

    image      [B, H, W, C]    uint8, or the dtype of the source; H, W: `image_size`
    mask       [B, H, W]       the class of each pixel
    label      int32 [B]       -1

and one of evaluation

    image      [B, Hc, Wc, C]  the resized image at the upper left of a canvas
    size       int32 [B, 2]    its height and width
    mask       [B, Hm, Wm]     the class of each pixel of the *original*, at the upper left
    mask_size  int32 [B, 2]    its height and width
    label      int32 [B]       -1
    valid      bool [B]        False for rows that fill up the last batch of a canvas

A mask is uint8 for up to 255 classes, and int32 for more. Pixels that do not count (ignored ones,
padding) have the value 255 in the first case and 65,535 in the second: `mask < num_classes` is true
for all others, and for them alone. Padding of images is what normalisation maps to 0.

The canvas and the mask's size are the same for all rows of a batch, but not for all batches: images
that have the same number of windows share a canvas (`loader/canvases.py`), so that a wide
photograph among square ones costs no more than itself. Evaluation is at the size of the original,
as in mmsegmentation: logits are resized from `size` to `mask_size`. With inference='whole' the
canvas is `image_size`, and the image is squeezed to fill it.
"""

from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from mae_jax.data.images.arrays import as_array, as_picture, mirrored
from mae_jax.data.images.decode import BadImage, decode
from mae_jax.data.images.limits import check_pixels
from mae_jax.data.images.masks import MaskValues, read_mask
from mae_jax.data.images.pictures import stored_orientation
from mae_jax.data.transforms.crops import Size, decoded, resize_bands
from mae_jax.data.transforms.views import AUGMENT, CROP_AND_FLIP, Augment, augmented, generator
from mae_jax.errors import UserError

CROP_TRIES = 10


def train_pairs(
    record: dict,
    *,
    seed: int,
    epoch: int,
    index: int,
    image_size: Size,
    channels: int,
    values: MaskValues,
    sides: tuple[int, int],
    resize_ratio: tuple[float, float],
    max_class_share: float,
    flip: bool,
    fill: tuple[float, ...],
    augment: Augment | None = None,
    repeats: int = 1,
    **reading: Any,
) -> dict[str, np.ndarray]:
    """Decodes a pair and makes `repeats` random views: resize, crop, flip, augmentation, padding.

    The steps of mmsegmentation, in its order; the resize is Pillow's antialiased bilinear for the
    image (torchvision's, where mmsegmentation's OpenCV skips pixels as it reduces) and takes the
    nearest pixel of the mask.

    Args:
      record: a `PairedExample`.
      seed, epoch, index: what the random numbers depend on.
      image_size: (H, W) of a view in pixels.
      channels: C.
      values: what the numbers in the mask mean.
      sides: most of the (short, long) side in pixels, to which the pair is resized ...
      resize_ratio: ... times a factor that is uniform in this range.
      max_class_share: see `crop_box`.
      flip: whether to mirror each view with a probability of 1/2.
      fill: of each band, the value of pixels to the right of the resized pair and below it.
      augment: of the image alone.
      repeats: number of views, r. The first view is the same for any number.
      **reading: arguments of `decode`: apply_exif, bands, nodata.

    Returns:
      `{'image': [r, H, W, C], 'mask': [r, H, W]}`, see above.

    Raises:
      BadImage: a file cannot be read, or the mask has another size than the image.
      UserError: a value of the mask is not that of a class, or as of `read_mask` and `augment`.
    """
    image, mask = read_pair(record, channels, values, **reading)
    views = []
    for view in range(repeats):
        rng = generator(seed, CROP_AND_FLIP, epoch, index, view)
        ratio = rng.uniform(*resize_ratio)
        size = fitted(mask.shape, tuple(int(side * ratio) for side in sides))
        pixels, classes = resize_pair(image, mask, size, record)
        rows, columns = crop_box(classes, image_size, rng, max_class_share, values.none)
        pixels, classes = pixels[rows, columns], classes[rows, columns]
        if flip and rng.random() < 0.5:
            pixels, classes = mirrored(pixels), classes[:, ::-1]
        if augment:
            rng = generator(seed, AUGMENT, epoch, index, view)
            pixels = augmented(np.ascontiguousarray(pixels), augment, rng)
        views.append((padded(pixels, image_size, fill), padded(classes, image_size, values.none)))
    images, masks = zip(*views, strict=True)
    return {'image': np.stack(images), 'mask': np.stack(masks)}


def eval_pair(
    record: dict,
    *,
    size: Size,
    canvas: Size,
    mask_canvas: Size,
    channels: int,
    values: MaskValues,
    fill: tuple[float, ...],
    **reading: Any,
) -> dict[str, np.ndarray]:
    """Decodes a pair and resizes the image; both lie at the upper left of a canvas.

    Args:
      size: (height, width) of the resized image in pixels.
      canvas, mask_canvas: (height, width) of the arrays that hold image and mask.
      record, channels, values, fill, **reading: as of `train_pairs`.

    Returns:
      A row of a batch, see above: image, size, mask and mask_size, each [1, ...].

    Raises:
      BadImage, UserError: as of `train_pairs`.
    """
    image, mask = read_pair(record, channels, values, **reading)
    pixels = resized_image(image, size, record)
    return {
        'image': padded(pixels, canvas, fill)[None],
        'size': np.array([size], np.int32),
        'mask': padded(mask, mask_canvas, values.none)[None],
        'mask_size': np.array([mask.shape], np.int32),
    }


def read_pair(
    record: dict, channels: int, values: MaskValues, **reading: Any
) -> tuple[Image.Image | np.ndarray, Int[np.ndarray, 'H W']]:
    """Decodes an image (see `decode`), and its mask to classes (see `MaskValues.classes`).

    Raises:
      BadImage, UserError: as of `train_pairs`.
    """
    name, mask = record_mask(record)
    image = decoded(decode(record, channels, lazily=True, **reading))
    check_one_shape(name, mask.shape, record, as_array(image).shape[:2], **reading)
    return image, values.classes(mask, name)


def check_one_shape(
    name: str, size: Size, record: dict, expected: Size, apply_exif: bool = False, **_: Any
) -> None:
    """Raises a BadImage where a mask is not of its image's size, or may lie another way up.

    Without `apply_exif` an image is read as it is stored. Whether its mask is so as well, or as
    viewers show the image, the sizes tell, unless it is a square, mirrored, or upside down.

    Args:
      name, size: of the mask, (height, width).
      record: of the image.
      expected: (height, width) of the image as it was read.
      apply_exif: as of `decode`.
    """
    image = record['image']
    turns = 1 if apply_exif or not isinstance(image, bytes) else stored_orientation(image)
    if size != expected:
        remedy = 'make both of one size'
        if turns != 1:
            remedy += ', or set dataset.apply_exif=True, as the EXIF orientation turns the image'
        raise BadImage(
            f'{name} has {size[1]} x {size[0]} pixels where its image {record["name"]} has '
            f'{expected[1]} x {expected[0]}: {remedy}.'
        )
    if turns in (2, 3, 4) or (turns != 1 and size[0] == size[1]):
        raise BadImage(
            f'{record["name"]} has an EXIF orientation, and its mask may follow it or not: set '
            'dataset.apply_exif=True if it does, or remove the orientation from the image.'
        )


def record_mask(record: dict) -> tuple[str, Int[np.ndarray, 'H W']]:
    """Returns the name of a pair's mask, and the mask as `read_mask` does.

    Raises:
      UserError: the record has none, or as of `read_mask`.
    """
    if 'mask' not in record:
        raise UserError(
            f"{record['name']} has no mask: give dataset.name='paired_folders', or a source of "
            'your own whose examples have one.'
        )
    name = record.get('mask_name', f'the mask of {record["name"]}')
    return name, read_mask(record['mask'], name)


def fitted(size: Size, sides: tuple[int, int]) -> Size:
    """Returns the largest (height, width) of the same proportions within a short and a long side.

    It is rounded as in mmsegmentation.

    Args:
      size: (height, width).
      sides: most of the short and of the long side, in any order.
    """
    factor = min(max(sides) / max(size), min(sides) / min(size))
    return tuple(max(1, int(side * factor + 0.5)) for side in size)


def resize_pair(
    image: Image.Image | np.ndarray, mask: np.ndarray, size: Size, record: dict
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes an image to [H, W, C] and its mask [h, w] to [H, W].

    Raises:
      BadImage: the result would be too large.
    """
    pixels = resized_image(image, size, record)
    picture = Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST)
    return pixels, np.asarray(picture)


def resized_image(image: Image.Image | np.ndarray, size: Size, record: dict) -> np.ndarray:
    """Resizes an image, antialiased and bilinear, to [H, W, C] of the same dtype.

    Raises:
      BadImage: the result would be too large.
    """
    try:
        check_pixels(*size[::-1])
    except ValueError as error:
        raise BadImage(f'{record["name"]} is too large when it is resized: {error}.') from error
    method = Image.Resampling.BILINEAR
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[-1] in (1, 3):
        image = as_picture(image)
    if isinstance(image, np.ndarray):
        return resize_bands(image, size, method)
    return as_array(image.resize(size[::-1], method))


def crop_box(
    mask: Int[np.ndarray, 'H W'],
    size: Size,
    rng: np.random.Generator,
    max_class_share: float,
    none: int,
) -> tuple[slice, slice]:
    """Draws the place of a crop, all of a side that is shorter than it.

    Crops are drawn anew, at most `CROP_TRIES` times, until one has two classes or more of which
    none has `max_class_share` of the pixels that count; with 1 the first one is taken.
    """
    box = _draw_box(mask.shape, size, rng)
    for _ in range(CROP_TRIES if max_class_share < 1 else 0):
        counts = np.bincount(mask[box].ravel(), minlength=none + 1)
        counts[none] = 0
        if np.count_nonzero(counts) > 1 and counts.max() < max_class_share * counts.sum():
            break
        box = _draw_box(mask.shape, size, rng)
    return box


def _draw_box(shape: Size, size: Size, rng: np.random.Generator) -> tuple[slice, slice]:
    starts = [int(rng.integers(max(a - b, 0) + 1)) for a, b in zip(shape, size, strict=True)]
    return tuple(slice(start, start + side) for start, side in zip(starts, size, strict=True))


def padded(array: np.ndarray, size: Size, fill: Any) -> np.ndarray:
    """Pads [h, w, ...] at the right and below to [H, W, ...] of the same dtype.

    Args:
      size: (H, W), at least (h, w).
      fill: the value of a pixel, or of each of its bands.
    """
    height, width = array.shape[:2]
    if (height, width) == size:
        return np.ascontiguousarray(array)
    fill = np.rint(fill) if array.dtype.kind in 'iu' else fill
    whole = np.empty((*size, *array.shape[2:]), array.dtype)
    row = np.full(whole.shape[1:], fill, array.dtype)  # NumPy copies rows faster than pixels
    whole[:height, :width], whole[:height, width:], whole[height:] = array, row[width:], row
    return whole
