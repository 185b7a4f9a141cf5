"""Mutations of files: bytes, a random.Random and other files to splice in -> bytes."""

import random
import re
import struct
import zlib

INTERESTING = (0, 1, 2, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 1 << 16, 1 << 24, 0x7FFFFFFF)
INTERESTING += (0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
NUMBERS = ('0', '-1', '1', '3', '65536', '2147483648', '1000000000000', '1e308', '1e999', 'null')
NUMBERS += ('true', '"x"', '[]', '{}', '"../../../etc/passwd"', '"/etc/passwd"', '9' * 400, '0.5')


def mutate(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """One to four mutations, each of any kind; `others` are files to splice in."""
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        data = rng.choice(MUTATIONS)(data, rng, others)
    return data


def flip_bits(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(min(len(data), rng.choice((1, 1, 2, 8, 64)))):
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_in_header(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    head = data[: min(len(data), 64)]
    return flip_bits(head, rng, others) + data[len(head) :]


def truncate(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def splice(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """The head of one file and the tail of another, or a part of it put in."""
    other = rng.choice(others)
    at, start = rng.randrange(len(data) + 1), rng.randrange(len(other) + 1)
    if rng.random() < 0.5:
        return data[:at] + other[start:]
    end = min(len(other), start + rng.randrange(1, 256))
    return data[:at] + other[start:end] + data[at + (rng.random() < 0.5) * (end - start) :]


def set_integer(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """A length, an offset or a count becomes another one, in either byte order."""
    size = rng.choice((1, 2, 4, 8))
    if len(data) < size:
        return data
    at = rng.randrange(min(len(data), rng.choice((64, 512, 1 << 30))) - size + 1)
    value = rng.choice(INTERESTING) & (1 << 8 * size) - 1
    order = rng.choice(('little', 'big'))
    if rng.random() < 0.3:
        value = int.from_bytes(data[at : at + size], order) + rng.choice((-1, 1, 16))
        value &= (1 << 8 * size) - 1
    return data[:at] + value.to_bytes(size, order) + data[at + size :]


def repeat(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """A part, again and again."""
    start = rng.randrange(len(data) + 1)
    part = data[start : start + rng.choice((1, 4, 16, 64, 256))]
    return data[:start] + part * rng.choice((2, 3, 16, 256)) + data[start + len(part) :]


def remove(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice((1, 2, 4, 16, 64)) :]


def claim_size(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Width, height or both as its kind of image has them, with the checksum that goes with it."""
    side = rng.choice((0, 1, 3, 9_000, 20_000, 65_535, 1 << 20, (1 << 31) - 1, (1 << 32) - 1))
    if data.startswith(b'\x89PNG') and len(data) > 33:
        at = rng.choice((16, 20))
        data = data[:at] + struct.pack('>I', side) + data[at + 4 :]
        if rng.random() < 0.3:  # bits and colours
            data = data[:24] + bytes([rng.choice((1, 2, 4, 8, 16)), rng.randrange(7)]) + data[26:]
        return data[:29] + struct.pack('>I', zlib.crc32(data[12:29])) + data[33:]
    small = struct.pack('>H', side & 0xFFFF)
    if data.startswith(b'\xff\xd8'):
        frame = re.search(rb'\xff[\xc0-\xc2]', data)
        if frame:
            at = frame.start() + rng.choice((5, 7))
            return data[:at] + small + data[at + 2 :]
    if data.startswith(b'GIF'):
        descriptor = data.find(b'\x2c')
        at = rng.choice((6, 8, max(descriptor, 0) + 5, max(descriptor, 0) + 7))
        return data[:at] + small[::-1] + data[at + 2 :]
    if data.startswith(b'BM'):
        at = rng.choice((18, 22))
        return data[:at] + struct.pack('<I', side) + data[at + 4 :]
    if data.startswith(b'RIFF'):
        at = rng.choice((21, 24, 26, 27, 28))
        return data[:at] + small[::-1] + data[at + 2 :]
    if data[:2] in (b'II', b'MM'):
        order = '<' if data.startswith(b'II') else '>'
        tag = rng.choice((256, 257, 258, 259, 273, 277, 278, 279, 284, 317, 322, 323, 339))
        for kind in (3, 4):
            at = data.find(struct.pack(order + 'HH', tag, kind))
            if at >= 0:
                return data[: at + 8] + struct.pack(order + 'I', side) + data[at + 12 :]
    return edit_text(data, rng, others)


def edit_text(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """A value of a JSON text, or of NumPy's header, becomes another; mostly a number."""
    values = list(
        re.finditer(rb'(?<=[\[:, (])-?\d[\d.e+-]*(?=[,\]})])|"[^"\n]{1,80}"', data[: 1 << 16])
    )
    if not values:
        return flip_in_header(data, rng, others)
    value = rng.choice(values)
    new = rng.choice(NUMBERS).encode()
    if value[0].startswith(b'"') and rng.random() < 0.5:
        new = rng.choice(values)[0]
    if rng.random() < 0.02:
        new = b'[' * 50_000
    edited = data[: value.start()] + new + data[value.end() :]
    return _mend_header(data, edited, len(new) - len(value[0]))


def _mend_header(before: bytes, after: bytes, grown: int) -> bytes:
    """The length of a safetensors header that has grown, so that it is still read."""
    if len(before) > 8 and before[8:9] == b'{':
        (length,) = struct.unpack('<Q', before[:8])
        if 0 <= length + grown < 1 << 63:
            return struct.pack('<Q', length + grown) + after[8:]
    return after


MUTATIONS = (
    flip_bits,
    flip_bits,
    flip_in_header,
    truncate,
    splice,
    set_integer,
    set_integer,
    repeat,
    remove,
    claim_size,
    edit_text,
)
