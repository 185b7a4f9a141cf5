"""Pictures for tests, and the files they are stored in."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""Of PNG, by the number of bands."""


def encode(image: Image.Image, kind: str, **options) -> bytes:
    """Returns the bytes of a file of this kind ('JPEG', 'PNG', ...)."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def smooth_picture(seed: int, width: int, height: int) -> Image.Image:
    """Draws blurred noise, so that JPEG and bicubic have work to do as on a photograph."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def paeth(left, up, corner):
    estimate = int(left) + int(up) - int(corner)
    distances = [abs(estimate - int(x)) for x in (left, up, corner)]
    return (left, up, corner)[int(np.argmin(distances))]


def filtered(rows, step):
    """Filters the rows of a PNG, uint8 [H, bytes], by the five methods in turn."""
    padded = np.zeros((rows.shape[0] + 1, rows.shape[1] + step), int)
    padded[1:, step:] = rows
    lines = b''
    for y in range(1, len(padded)):
        method = (y - 1) % 5
        line = bytearray([method])
        for x in range(step, padded.shape[1]):
            left, up, corner = padded[y, x - step], padded[y - 1, x], padded[y - 1, x - step]
            guess = (0, left, up, (left + up) // 2, paeth(left, up, corner))[method]
            line.append((padded[y, x] - guess) % 256)
        lines += bytes(line)
    return lines


def deep_png(pixels) -> bytes:
    """Writes uint16 [H, W, C] as a PNG, by the specification."""
    height, width, bands = pixels.shape
    rows = pixels.astype('>u2').reshape(height, -1).view(np.uint8)

    def chunk(kind, body):
        check = zlib.crc32(kind + body)
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', check)

    header = struct.pack('>IIBBBBB', width, height, 16, COLOUR_TYPES[bands], 0, 0, 0)
    data = zlib.compress(filtered(rows, 2 * bands))
    return (
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', data) + chunk(b'IEND', b'')
    )
