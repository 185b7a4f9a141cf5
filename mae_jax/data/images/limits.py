"""Limits of the memory and time that decoding an image may take, checked before it is decoded.

A file of a kilobyte can claim a million pixels a side, and one of a megabyte can unpack to a
gigabyte. Each check reads the size that the file itself claims, and raises ValueError with a
reason. Pillow has limits of its own; these checks cover what it allocates before it applies them,
and what it decodes without any.
"""

import io
import itertools
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from mae_jax.errors import UserError

MAX_IMAGE_PIXELS = 89_478_485
"""Maximum number of pixels of a photograph, and of what it is resized to before it is cropped.

Above it Pillow warns of a decompression bomb: it is a quarter of a GiB as RGB. With the copies that
a conversion makes, decoding takes at most 1.5 GiB. ImageNet's largest image has 15 million."""

MAX_IMAGE_BYTES = 1 << 30
"""Maximum size of a decoded array, and of any file that is read as an image, in bytes: 4,096 x
4,096 pixels of 16 bands of float32."""

MAX_JPEG_SCANS = 100
"""Maximum number of scans: each costs the file some bytes and the decoder a pass over the whole
picture. Progressive JPEGs have about ten."""

MAX_TIFF_PAGES = 16_384
"""Maximum number of pages: an array may be saved with a page for each of its rows."""

PLUGINS = (
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    TiffImagePlugin,
    PpmImagePlugin,
    Jpeg2KImagePlugin,
    AvifImagePlugin,
)
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM', 'JPEG2000', 'AVIF')
"""Formats that Pillow may read, recognised by content, not by the name of the file. Not among them
is EPS, which Pillow would pass to Ghostscript, an interpreter of a programming language."""

WEBP_CHUNKS = {b'VP8X': 10, b'VP8 ': 10, b'VP8L': 5}
"""Kinds of first chunks of a WebP, and how many bytes of each hold its size."""

JPEG2000_PIXELS = b'\xff\x4f\xff\x51'
"""Where the pixels of a JPEG 2000 begin. By chance files of other formats hold these bytes."""
JPEG2000_STARTS = (JPEG2000_PIXELS, b'\0\0\0\x0cjP  \r\n\x87\n')
"""Pixels alone, and within the boxes of a JP2."""

HEIF_BRANDS = (b'heic', b'heix', b'hevc', b'hevx', b'heim', b'heis', b'mif1', b'msf1')
"""Kinds of files that `pillow-heif` reads, where it is installed."""


def check_pixels(width: int, height: int) -> None:
    """Raises ValueError where a picture has more than `MAX_IMAGE_PIXELS`."""
    if width * height > MAX_IMAGE_PIXELS:
        raise ValueError(
            f'{width:,} x {height:,} pixels, where {MAX_IMAGE_PIXELS:,} is the maximum'
        )


def check_bytes(count: int) -> None:
    """Raises ValueError where an array has more than `MAX_IMAGE_BYTES`."""
    if count > MAX_IMAGE_BYTES:
        raise ValueError(f'{count:,} bytes, where {MAX_IMAGE_BYTES:,} is the maximum')


def open_picture(data: bytes) -> Image.Image:
    """Opens the content of an image file with Pillow, which reads its header, and checks its size.

    Raises:
      ValueError: the image is too large, or has too many scans or pages.
      OSError: Pillow does not recognise the file.
    """
    if data[:4] == b'RIFF' and data[8:12] == b'WEBP':  # Pillow allocates it as it opens it
        check_pixels(*_webp_size(data))
    if data[:2] == b'\xff\xd8':
        check_scans(data)
    if data.startswith(TIFF_MAGICS):
        check_pages(data)
    if data.startswith(JPEG2000_STARTS) and JPEG2000_PIXELS in data:
        check_pixels(*jpeg2000_size(data)[:2])
    image = Image.open(io.BytesIO(data), formats=FORMATS + _register_heif(data))
    check_pixels(*image.size)
    if image.format == 'TIFF':  # tiles are decoded whole, and may be larger than the picture
        sides = [image.tag_v2.get(tag, 1) for tag in (TILE_WIDTH, TILE_LENGTH)]
        check_pixels(*(int(side) for side in sides))
    return image


def check_scans(data: bytes) -> None:
    """Raises ValueError where a JPEG has more than `MAX_JPEG_SCANS`."""
    # Within the data of a scan 0xff is followed by 0, so these two bytes mostly start a scan.
    if data.count(b'\xff\xda') > MAX_JPEG_SCANS:
        raise ValueError(f'a JPEG of more than {MAX_JPEG_SCANS} scans')


def _webp_size(data: bytes) -> tuple[int, int]:
    """Reads the (width, height) of a WebP from its first chunk."""
    kind, body = data[12:16], data[20:30]
    if len(body) < WEBP_CHUNKS.get(kind, 1 << 30):
        raise ValueError('a WebP without a picture')
    if kind == b'VP8X':
        return tuple(1 + int.from_bytes(body[i : i + 3], 'little') for i in (4, 7))
    if kind == b'VP8L':
        bits = int.from_bytes(body[1:5], 'little')
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return tuple(int.from_bytes(body[i : i + 2], 'little') & 0x3FFF for i in (6, 8))


def jpeg2000_size(data: bytes) -> tuple[int, int, int, int]:
    """Reads (width, height, bands, bits of the first band) from the header of a JPEG 2000.

    Raises:
      struct.error: it is truncated.
    """
    at = data.index(JPEG2000_PIXELS)
    right, bottom, left, top = struct.unpack_from('>4I', data, at + 8)
    bands, bits = struct.unpack_from('>HB', data, at + 40)
    return right - left, bottom - top, bands, 1 + (bits & 0x7F)


def _register_heif(data: bytes) -> tuple[str, ...]:
    """Returns the name of the HEIF plugin of Pillow for a file that needs it, else ()."""
    if data[4:8] != b'ftyp' or data[8:12] not in HEIF_BRANDS:
        return ()
    try:
        import pillow_heif
    except ImportError as error:
        raise UserError('a HEIC picture: to read it, `pip install pillow-heif`.') from error
    pillow_heif.register_heif_opener()
    return ('HEIF',)


# TIFF: magic numbers (the last two are BigTIFF's) and tags.
TIFF_MAGICS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
TILE_WIDTH, TILE_LENGTH = 322, 323
DEFLATE, LZMA = (8, 32946), 34925
MAX_LZMA_BYTES = 128 << 20
"""Maximum size of LZMA's dictionary in bytes. A file may ask for 4 GiB; the highest preset of the
format uses 64 MiB."""
PLAIN = (1, 32773)
"""No compression, and PackBits, which expands a byte to 64 at most."""
LZW = 5
"""Expands a byte to 1,365 at most, and only into a buffer of the size that the picture claims."""


def check_pages(data: bytes) -> int:
    """Counts the pages of a TIFF.

    Raises:
      ValueError: it has more than `MAX_TIFF_PAGES`, or a page refers to an earlier one, so that
        they would never end.
    """
    order = '<' if data[:2] == b'II' else '>'
    big = data[2:4] in (b'+\0', b'\0+')
    count, entry, offset = ('Q', 20, 'Q') if big else ('H', 12, 'I')
    seen, at = set(), 8 if big else 4
    while True:
        try:
            (at,) = struct.unpack_from(order + offset, data, at)
            if not at or at >= len(data):
                break
            if at in seen:
                raise ValueError('a TIFF whose pages go round in a circle')
            seen.add(at)
            if len(seen) > MAX_TIFF_PAGES:
                raise ValueError(f'a TIFF of more than {MAX_TIFF_PAGES:,} pages')
            (entries,) = struct.unpack_from(order + count, data, at)
            at += struct.calcsize(order + count) + entries * entry
        except (struct.error, OverflowError):  # the file is truncated
            break
    return len(seen)


def check_numbers(data: bytes, source: Any, pages: Sequence) -> None:
    """Checks what decoding pages of a TIFF with tifffile would allocate.

    Args:
      data: the content of the file.
      source: a page, or a series, as of `tifffile.TiffFile(...).series`.
      pages: its pages.

    Raises:
      ValueError: it is more than `MAX_IMAGE_BYTES` or than the file can hold, a segment unpacks to
        more than its size, or the compression is one whose output cannot be bounded.
    """
    page, itemsize = pages[0], source.dtype.itemsize
    values = math.prod(source.shape)
    segment = math.prod(page.chunks) * itemsize
    check_bytes(max(values * itemsize, segment))
    bits = page.bitspersample
    stored = values * min(bits if isinstance(bits, tuple) else (bits,)) // 8
    if page.compression == PLAIN[0] and stored > len(data):
        raise ValueError(f'{stored:,} bytes of numbers in a file of {len(data):,}')
    if page.compression in (*PLAIN, LZW):
        return
    if page.compression not in (*DEFLATE, LZMA):
        raise ValueError(
            f'deep numbers in a TIFF compressed by method {int(page.compression)}: save it '
            'without compression, or with deflate'
        )
    # tifffile unpacks a segment without a bound.
    for packed in _segments(data, pages):
        if unpacked_size(packed, page.compression == LZMA, segment) > segment:
            raise ValueError(f'a segment of a TIFF that unpacks to more than its {segment:,} bytes')


def _segments(data: bytes, pages: Sequence) -> Iterator[memoryview]:
    view = memoryview(data)
    for page in pages:
        for start, size in zip(page.dataoffsets, page.databytecounts, strict=False):
            yield view[start : start + size]


def unpacked_size(data: bytes | memoryview, is_lzma: bool, most: int) -> int:
    """Returns how many bytes compressed data unpack to; counting stops beyond `most`.

    Args:
      data: compressed by LZMA or, if not `is_lzma`, by deflate.

    Raises:
      zlib.error, lzma.LZMAError: the data are damaged.
    """
    if is_lzma:
        import lzma  # not in every Python

        unpack, size = lzma.LZMADecompressor(memlimit=MAX_LZMA_BYTES), 0
        more = unpack.decompress(data, 1 << 20)
        while more and size <= most and not unpack.eof:
            size += len(more)
            more = unpack.decompress(b'', 1 << 20)
        return size + len(more)
    unpack, size = zlib.decompressobj(), 0
    for start in itertools.count(0, 1 << 16):
        rest = data[start : start + (1 << 16)]
        if not len(rest) or unpack.eof or size > most:
            return size
        while len(rest) and not unpack.eof and size <= most:
            size += len(unpack.decompress(rest, 1 << 20))
            rest = unpack.unconsumed_tail
