"""Files that claim to be larger than they are, and what memory reading them took."""

import io
import resource
import struct
import zlib

import numpy as np
import tifffile
from PIL import Image

from helpers.images import encode


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    data = encode(Image.new('RGB', (8, 8)), 'PNG')
    data = data[:16] + struct.pack('>II', width, height) + data[24:]
    return data[:29] + struct.pack('>I', zlib.crc32(data[12:29])) + data[33:]


def jpeg_that_claims(width: int, height: int) -> bytes:
    data = encode(Image.new('RGB', (8, 8)), 'JPEG')
    at = data.index(b'\xff\xc0') + 5
    return data[:at] + struct.pack('>HH', height, width) + data[at + 4 :]


def webp_that_claims(width: int, height: int) -> bytes:
    frames = [Image.new('RGB', (8, 8), colour) for colour in ('black', 'red')]
    data = encode(frames[0], 'WEBP', save_all=True, append_images=frames[1:])
    sides = (width - 1).to_bytes(3, 'little') + (height - 1).to_bytes(3, 'little')
    assert data[12:16] == b'VP8X'
    return data[:24] + sides + data[30:]


def bmp_that_claims(width: int, height: int) -> bytes:
    data = encode(Image.new('RGB', (8, 8)), 'BMP')
    return data[:18] + struct.pack('<ii', width, height) + data[26:]


def gif_that_claims(width: int, height: int) -> bytes:
    data = encode(Image.new('L', (8, 8)), 'GIF')
    return data[:6] + struct.pack('<HH', width, height) + data[10:]


def tiff_with(data: bytes, tag: int, value: int) -> bytes:
    """One number of its first page becomes another."""
    at = data.index(struct.pack('<H', tag), 8)
    assert struct.unpack_from('<H', data, at + 2)[0] in (3, 4)
    return data[: at + 2] + struct.pack('<HII', 4, 1, value) + data[at + 12 :]


def deep_tiff(shape=(16, 16, 3), **options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros(shape, np.uint16), photometric='rgb', **options)
    return buffer.getvalue()


def tiff_of_shape(width: int, height: int, deep: bool) -> bytes:
    data = deep_tiff() if deep else encode(Image.new('RGB', (8, 8)), 'TIFF')
    return tiff_with(tiff_with(data, 256, width), 257, height)


def npy_that_claims(*shape: int) -> bytes:
    buffer = io.BytesIO()
    header = {'descr': '<f4', 'fortran_order': False, 'shape': shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + bytes(64)


def resident_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
