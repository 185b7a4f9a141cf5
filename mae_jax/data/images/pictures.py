"""Files other than TIFF that Pillow opens, with samples deeper than 8 bits as they are stored."""

import numpy as np
from PIL import Image

from mae_jax.data.images.limits import jpeg2000_size, open_picture

ORIENTATION = 274  # the EXIF tag
DEEP_PNG = {'RGB;16B': 'RGB;16L', 'RGBA;16B': 'RGBA;16L'}
"""How Pillow reads the upper byte of each sample of 16 bits, and the lower one."""


def read_picture(
    data: bytes, channels: int | None, apply_exif: bool
) -> tuple[Image.Image | np.ndarray, int]:
    """Opens an image file with Pillow, not turned by its orientation.

    The samples of PNG, PGM, PPM and grey JPEG 2000 of up to 16 bits are kept, of which Pillow alone
    keeps grey ones. AVIF of 10 and 12 bits is cut to 8.

    Args:
      data: the content of an image file.
      channels: the bands that the image should have; None for all that there are.
      apply_exif: whether the orientation is needed; it may be damaged.

    Returns:
      (a Pillow image of 8 bits, or an array [H, W, C], of colours alone where `channels` is 1 or 3;
      its orientation, 1 to 8, or 1 if it is not needed)

    Raises:
      Exception: of any kind, where the file is damaged, exceeds `limits.py`, or is a JPEG 2000 or
        a PPM as text of several deep bands, of which Pillow would keep 8 bits.
    """
    image = open_picture(data)
    read = {'PNG': _deep_png, 'PPM': _deep_ppm, 'JPEG2000': _deep_jpeg2000}.get(image.format)
    array = read(data, image) if read else None
    if array is None and image.mode.startswith(('I', 'F')):
        array = np.asarray(image)
        if array.dtype == np.int32 and array.min() >= 0 and array.max() < 1 << 16:
            array = array.astype(np.uint16)  # Pillow widens some kinds of 16-bit grey
    if array is not None and array.shape[2:] in ((2,), (4,)) and channels in (1, 3):
        array = array[..., :-1]  # without alpha
    picture = image if array is None else array
    return picture, exif_orientation(image) if apply_exif else 1


def exif_orientation(image: Image.Image) -> int:
    """Returns the orientation of an image that Pillow has opened, 1 to 8."""
    value = image.getexif().get(ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def stored_orientation(data: bytes) -> int:
    """Returns the orientation of an image file, 1 to 8; 1 where Pillow does not know the format."""
    try:
        return exif_orientation(open_picture(data))
    except Exception:  # what reads the pixels reports it
        return 1


def _deep_png(data: bytes, image: Image.Image) -> np.ndarray | None:
    """Decodes colours, or grey and alpha, of 16 bits."""
    rawmode = image.tile[0].args if image.tile else None
    if rawmode == 'LA;16B':  # the four bytes of a pixel, for Pillow those of RGBA
        image.tile = [image.tile[0]._replace(args='RGBA')]
        return np.asarray(image).view('>u2').astype(np.uint16)
    if rawmode not in DEEP_PNG:
        return None
    again = open_picture(data)
    again.tile = [again.tile[0]._replace(args=DEEP_PNG[rawmode])]
    return np.asarray(image).astype(np.uint16) << 8 | np.asarray(again)


def _deep_ppm(data: bytes, image: Image.Image) -> np.ndarray | None:
    """Decodes colours of more than 8 bits."""
    tile = image.tile[0]
    if image.mode != 'RGB' or not isinstance(tile.args, tuple) or tile.args[1] < 256:
        return None
    if tile.codec_name != 'ppm':
        raise ValueError('colours of more than 8 bits as text: save it as a 16-bit PNG or a TIFF')
    shape = image.height, image.width, 3
    pixels = np.frombuffer(data, '>u2', np.prod(shape), tile.offset)
    return pixels.astype(np.uint16).reshape(shape)


def _deep_jpeg2000(data: bytes, image: Image.Image) -> np.ndarray | None:
    """Decodes grey of more than 8 bits, which Pillow moves to the upper of its 16 bits."""
    _, _, bands, bits = jpeg2000_size(data)
    if bits <= 8:
        return None
    if bands > 1 or bits > 16:
        raise ValueError(f'a JPEG 2000 of {bands} bands of {bits} bits: save it as a TIFF')
    return np.asarray(image) >> (16 - bits)
