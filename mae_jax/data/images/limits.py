"""What an image file may ask for, found out before anything is decoded.

A file of a kilobyte can claim a million pixels a side, and one of a megabyte unpack to a thousand.
Each check reads what the file itself says of its size, and raises ValueError with a reason. Pillow
refuses its share too; what it allocates before it does, or decodes without a bound, is seen to
here.
"""

import itertools
import math
import struct
import zlib
from collections.abc import Iterator

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

MAX_IMAGE_PIXELS = 89_478_485
"""Of a photograph, and of what it is resized to before a crop is cut out. From here on Pillow warns
of a bomb: as RGB it is a quarter of a GiB. With the copies that a conversion makes, decoding one
takes 1.5 GiB at the most; ImageNet's largest has 15 million."""

MAX_IMAGE_BYTES = 1 << 30
"""Of a decoded array, and of any file that is read as an image: 4,096 x 4,096 pixels of 16 bands of
float32."""

MAX_JPEG_SCANS = 100
"""Every scan goes over the whole picture again, and costs a file some bytes. Progressive JPEGs
have about ten."""

MAX_TIFF_PAGES = 16_384
"""An array may be saved with a page for each of its rows, of which pictures have no more."""

PLUGINS = (
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    TiffImagePlugin,
)
FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF')
"""Of Pillow's, by content; what a name ends in does not count. Another one it has, EPS, would be
given to Ghostscript, which is a programming language."""

WEBP_CHUNKS = (b'VP8X', b'VP8 ', b'VP8L')


def check_pixels(width: int, height: int) -> None:
    """Raises ValueError for a picture that is too large."""
    if width * height > MAX_IMAGE_PIXELS:
        raise ValueError(f'{width:,} x {height:,} pixels, where {MAX_IMAGE_PIXELS:,} is the most')


def check_bytes(count: int) -> None:
    """Raises ValueError for an array that is too large."""
    if count > MAX_IMAGE_BYTES:
        raise ValueError(f'{count:,} bytes, where {MAX_IMAGE_BYTES:,} is the most')


def open_picture(data: bytes, file) -> Image.Image:
    """Pillow's image of `file`, which holds `data`: its header is read and its size is allowed."""
    if data[:4] == b'RIFF' and data[8:12] == b'WEBP':  # Pillow allocates it to find out its size
        check_pixels(*_webp_size(data))
    if data[:2] == b'\xff\xd8':
        check_scans(data)
    if data.startswith(TIFF_MAGICS):
        check_pages(data)
    image = Image.open(file, formats=FORMATS)
    check_pixels(*image.size)
    if image.format == 'TIFF':  # a tile is decoded whole, however little of it is in the picture
        sides = [image.tag_v2.get(tag, 1) for tag in (TILE_WIDTH, TILE_LENGTH)]
        check_pixels(*(int(side) for side in sides))
    return image


def check_scans(data: bytes) -> None:
    """Raises ValueError for a JPEG of too many scans."""
    # Within a scan 0xff is followed by 0, so that what looks like a start of one mostly is.
    if data.count(b'\xff\xda') > MAX_JPEG_SCANS:
        raise ValueError(f'a JPEG of more than {MAX_JPEG_SCANS} scans')


def _webp_size(data: bytes) -> tuple[int, int]:
    """Of the canvas. A file that breaks off before its first chunk has none."""
    kind, body = data[12:16], data[20:30]
    if kind not in WEBP_CHUNKS or len(body) < 10:
        raise ValueError('a WebP without a picture')
    if kind == b'VP8X':
        return tuple(1 + int.from_bytes(body[i : i + 3], 'little') for i in (4, 7))
    if kind == b'VP8L':
        bits = int.from_bytes(body[1:5], 'little')
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return tuple(int.from_bytes(body[i : i + 2], 'little') & 0x3FFF for i in (6, 8))


# TIFF: magic numbers (the last two are BigTIFF's) and tags.
TIFF_MAGICS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
TILE_WIDTH, TILE_LENGTH = 322, 323
DEFLATE, LZMA = (8, 32946), 34925
MAX_LZMA_BYTES = 128 << 20
"""Of LZMA's dictionary, which a file may ask to be 4 GiB; the highest preset has 64 MiB."""
PLAIN = (1, 32773)
"""Compressions that cannot do much: none, and PackBits, which makes 64 bytes of one."""
LZW = 5
"""Makes at most 1,365 bytes of one, and is given room for what the picture should have."""


def check_pages(data: bytes) -> int:
    """How many pages a TIFF has.

    Raises:
      ValueError: too many, or one refers to an earlier one, and they would never end.
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
        except (struct.error, OverflowError):  # the chain breaks off there
            break
    return len(seen)


def check_series(data: bytes, series) -> None:
    """Raises ValueError where decoding a series of tifffile's takes more than it may.

    Args:
      data: the file.
      series: of `TiffFile(...).series`.
    """
    page, itemsize = series.keyframe, series.dtype.itemsize
    claimed = math.prod(series.shape) * itemsize
    segment = math.prod(page.chunks) * itemsize
    check_bytes(max(claimed, segment))
    if page.compression == PLAIN[0] and claimed > len(data):
        raise ValueError(f'{claimed:,} bytes of numbers in a file of {len(data):,}')
    if page.compression in (*PLAIN, LZW):
        return
    if page.compression not in (*DEFLATE, LZMA):
        raise ValueError(
            f'deep numbers in a TIFF compressed by method {int(page.compression)}: save it '
            'without compression, or with deflate'
        )
    # tifffile unpacks a segment whole, whatever comes.
    for part in _segments(data, series):
        if unpacked_size(part, page.compression == LZMA, segment) > segment:
            raise ValueError(f'a part of a TIFF that unpacks to more than its {segment:,} bytes')


def _segments(data: bytes, series) -> Iterator[memoryview]:
    view = memoryview(data)
    for page in series.pages:
        for start, size in zip(page.dataoffsets, page.databytecounts, strict=False):
            yield view[start : start + size]


def unpacked_size(data, is_lzma: bool, most: int) -> int:
    """Bytes that compressed data unpack to; once there are more than `most`, of no interest.

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
