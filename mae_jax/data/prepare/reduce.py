"""Reduces an image to the size that training needs, and measures what that changes."""

import io

import numpy as np
from PIL import Image

from mae_jax.data.images.arrays import as_picture
from mae_jax.data.images.decode import NPY_MAGIC, decode
from mae_jax.data.images.jpeg import CropBox
from mae_jax.data.images.limits import TIFF_MAGICS, open_picture
from mae_jax.data.images.pictures import ORIENTATION, exif_orientation
from mae_jax.data.images.tiff import orientation as tiff_orientation
from mae_jax.data.transforms import crops

MAX_JPEG_SIDE = 65_500  # pixels; the limit of libjpeg
COMPARED_SIZE = (224, 224)  # pixels of the crops that are compared
SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)  # of the training crop that is compared


def reduce_image(
    record: dict, short_side: int, quality: int, channels: int, nodata: float | None = None
) -> bytes:
    """Returns the bytes of an image file whose short side is at most `short_side`.

    An image that is no larger is returned unchanged, byte for byte. Others are resized with
    antialiased bicubic interpolation. That is the first step of evaluation too, so that an
    evaluation crop of the result equals that of the original, except for the loss of JPEG (with
    LANCZOS, training crops were 2% nearer and evaluation crops 0.6 grey levels away).

    Photographs become JPEG without chroma subsampling (4:4:4 at quality 92 is as near as 4:2:0 at
    95 and a tenth smaller), or PNG where they have 2 or 4 bands or a side too long for JPEG. Data
    and `.npy` files become `.npy` of the same dtype, or a TIFF if they have an orientation. The
    orientation is kept, so that `apply_exif` has the same effect as on the original.

    Args:
      record: an example of a source whose image is encoded.
      short_side: in pixels.
      quality: of JPEG, 1 to 100.
      channels, nodata: see `decode`. Pixels that are missing would spoil their neighbours; in an
        image that is not resized they stay.

    Raises:
      BadImage: the image cannot be decoded.
    """
    data = record['image']
    picture = decode(record, channels, nodata=nodata)
    width, height = crops.width_height(picture)
    if min(width, height) <= short_side:
        return data
    pixels = crops.resize_crop(
        picture, (0, 0, width, height), reduced_size(width, height, short_side)
    )
    orientation = _orientation(data)
    if pixels.dtype != np.uint8 or channels > 4 or data.startswith(NPY_MAGIC):
        return _npy(pixels) if orientation == 1 else _tiff(pixels, orientation)
    image = as_picture(pixels)
    file = io.BytesIO()
    exif = b''
    if orientation != 1:
        tags = Image.Exif()
        tags[ORIENTATION] = orientation
        exif = tags.tobytes()
    if channels in (1, 3) and max(image.size) <= MAX_JPEG_SIDE:
        image.save(file, 'JPEG', quality=quality, subsampling='4:4:4', exif=exif)
    else:
        image.save(file, 'PNG', exif=exif)
    return file.getvalue()


def reduced_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Returns the (height, width) of the reduced image, rounded as evaluation resizes."""
    if width < height:
        return short_side * height // width, short_side
    return short_side, short_side * width // height


def _npy(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


def _tiff(pixels: np.ndarray, orientation: int) -> bytes:
    import tifffile  # takes a moment to import

    file = io.BytesIO()
    tag = (ORIENTATION, 'H', 1, orientation, True)
    tifffile.imwrite(
        file,
        pixels,
        photometric='minisblack',
        planarconfig='contig' if pixels.shape[-1] > 1 else None,
        extratags=[tag],
    )
    return file.getvalue()


def _orientation(data: bytes) -> int:
    """Returns the orientation of an image file, 1 to 8."""
    if data.startswith(NPY_MAGIC):
        return 1
    try:
        if data.startswith(TIFF_MAGICS):
            return tiff_orientation(data)
        return exif_orientation(open_picture(data))
    except Exception:  # damaged EXIF data count as none
        return 1


def compare(
    original: dict, reduced: dict, channels: int, seed: int, nodata: float | None = None
) -> tuple[float, float]:
    """Measures how much the crops of a reduced image differ from those of its original.

    The training crop is a RandomResizedCrop to 224 x 224 pixels, of the same rectangle in both
    versions, to the nearest pixel.

    Args:
      original, reduced: the two versions as examples of a source.
      channels, nodata: see `decode`.
      seed: of the training crop.

    Returns:
      Mean absolute differences of a training crop and of the evaluation crop, in grey levels, 0 to
      255, or in the unit of the data.
    """
    before, after = (decode(record, channels, nodata=nodata) for record in (original, reduced))
    small, large = crops.width_height(after), crops.width_height(before)
    box = crops.random_resized_crop_box(*small, np.random.default_rng(seed), SCALE, RATIO)
    random = [
        crops.resize_crop(before, _scale_box(box, small, large), COMPARED_SIZE),
        crops.resize_crop(after, box, COMPARED_SIZE),
    ]
    centers = [crops.center_crop(picture, COMPARED_SIZE) for picture in (before, after)]
    return tuple(float(abs(a - b.astype(float)).mean()) for a, b in (random, centers))


def _scale_box(box: CropBox, small: tuple[int, int], large: tuple[int, int]) -> CropBox:
    """Returns the box in a picture of size `large` that corresponds to one in `small`."""
    left, top, width, height = box
    edges = [(left, left + width), (top, top + height)]
    scaled = [
        [round(edge * new / old) for edge in pair]
        for pair, old, new in zip(edges, small, large, strict=True)
    ]
    (left, right), (top, bottom) = scaled
    return left, top, right - left, bottom - top
