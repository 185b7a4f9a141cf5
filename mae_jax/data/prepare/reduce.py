"""An image of a source -> the smaller one that is kept of it, and what that costs in pixels."""

import io

import numpy as np
from PIL import Image

from mae_jax.data.images.arrays import as_picture
from mae_jax.data.images.decode import NPY_MAGIC, decode
from mae_jax.data.images.jpeg import Box
from mae_jax.data.images.limits import open_picture
from mae_jax.data.transforms import crops

ORIENTATION = 274  # the EXIF tag
MOST_JPEG_SIDE = 65_500  # pixels, of libjpeg
COMPARED = 224  # pixels, of the crops that are compared
SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)  # of the training crops among them


def reduce_image(record: dict, short_side: int, quality: int, channels: int) -> bytes:
    """The file of an image whose short side is at most `short_side`.

    One that is no larger stays as it is, byte for byte. Resized is by antialiased bicubic: an
    evaluation crop of the result is then, but for JPEG, that of the original, as evaluation's
    first step is this very resize (LANCZOS brought training crops 2% nearer and evaluation crops
    0.6 grey levels away). Photographs become JPEG without chroma subsampling (4:4:4 at quality 92
    is as near as 4:2:0 at 95, in a tenth less bytes), or PNG where there are 2 or 4 bands or a
    side is too long for it; data and `.npy` files become `.npy` of the same dtype. EXIF orientation
    is kept, so that `apply_exif` means the same as of the original.

    Args:
      record: `{'image': encoded bytes, 'name': str}`.
      short_side: pixels.
      quality: of JPEG, 1 to 100.
      channels: see `decode`.

    Raises:
      BadImage: it cannot be decoded.
    """
    data = record['image']
    picture = decode(record, channels)
    width, height = crops.width_height(picture)
    if min(width, height) <= short_side:
        return data
    pixels = crops.resize_crop(
        picture, (0, 0, width, height), reduced_size(width, height, short_side)
    )
    if pixels.dtype != np.uint8 or channels > 4 or data.startswith(NPY_MAGIC):
        return _npy(pixels)
    image = as_picture(pixels)
    file = io.BytesIO()
    exif = _orientation(data)
    if channels in (1, 3) and max(image.size) <= MOST_JPEG_SIDE:
        image.save(file, 'JPEG', quality=quality, subsampling='4:4:4', exif=exif)
    else:
        image.save(file, 'PNG', exif=exif)
    return file.getvalue()


def reduced_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """(height, width) in torchvision's integers, as evaluation resizes."""
    if width < height:
        return short_side * height // width, short_side
    return short_side, short_side * width // height


def _npy(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def _orientation(data: bytes) -> bytes:
    """That tag of a file alone, as EXIF; nothing where the picture is upright."""
    try:
        orientation = open_picture(data, io.BytesIO(data)).getexif().get(ORIENTATION)
    except Exception:  # a tag that is broken says nothing
        return b''
    if orientation not in range(2, 9):
        return b''
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif.tobytes()


def compare(original: dict, reduced: dict, channels: int, seed: int) -> tuple[float, float]:
    """Mean absolute difference of (a training crop, the evaluation crop) of two versions.

    The training crop is a RandomResizedCrop to 224 pixels, the same rectangle in both, to the
    nearest pixel. In grey levels, 0 to 255, or whatever units data are in.

    Args:
      original, reduced: records.
      channels: see `decode`.
      seed: of the crop.
    """
    before, after = decode(original, channels), decode(reduced, channels)
    size = (COMPARED, COMPARED)
    small, large = crops.width_height(after), crops.width_height(before)
    box = crops.random_resized_crop_box(*small, np.random.default_rng(seed), SCALE, RATIO)
    random = [
        crops.resize_crop(before, _scale_box(box, small, large), size),
        crops.resize_crop(after, box, size),
    ]
    centers = [crops.center_crop(picture, size) for picture in (before, after)]
    return tuple(float(abs(a - b.astype(float)).mean()) for a, b in (random, centers))


def _scale_box(box: Box, small: tuple[int, int], large: tuple[int, int]) -> Box:
    left, top, width, height = box
    edges = [(left, left + width), (top, top + height)]
    scaled = [
        [round(edge * to / of) for edge in pair]
        for pair, of, to in zip(edges, small, large, strict=True)
    ]
    (left, right), (top, bottom) = scaled
    return left, top, right - left, bottom - top
