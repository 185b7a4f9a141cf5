"""Files mutated by the thousand and read in a child process that is watched.

A case is a number: (what, seed, number) gives the same bytes wherever it runs, and

    PYTHONPATH=.:tests:tests/golden python tests/helpers/fuzzing.py images 0 1234 1

runs number 1234 of seed 0 alone. What is fuzzed, and by which function, is in `fuzz_images.py` and
`fuzz_weights.py`: `prepare(folder) -> state`, `make(state, rng) -> case` and `read(state, case)`.
`read` must return, or raise one of `ACCEPTED`.

The child ends with a failure for any other exception, and for running out of memory whatever is
made of it. Code of a file that runs would unpickle, open a file to write, start a program or use a
socket: Python reports each of these (PEP 578), and that is a failure too. A crash, and a case that
takes longer than `CASE_S`, the parent sees.
"""

import importlib
import json
import os
import random
import re
import resource
import select
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zlib
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PATHS = (ROOT, ROOT / 'tests', ROOT / 'tests/golden')
CASE_S = 60.0
"""Many times what the slowest takes, for machines that are busy."""
FAILURES = 10
"""After so many of them a child stops."""
FORBIDDEN = (
    'pickle.find_class',
    'os.system',
    'os.exec',
    'os.posix_spawn',
    'os.startfile',
    'subprocess.Popen',
    'socket.bind',
    'socket.connect',
    'ctypes.dlopen',
)
INTERESTING = (0, 1, 2, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 1 << 16, 1 << 24, 0x7FFFFFFF)
INTERESTING += (0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
NUMBERS = ('0', '-1', '1', '3', '65536', '2147483648', '1000000000000', '1e308', '1e999', 'null')
NUMBERS += ('true', '"x"', '[]', '{}', '"../../../etc/passwd"', '"/etc/passwd"', '9' * 400, '0.5')


class Report(NamedTuple):
    """Results of a child process."""

    read: int
    refused: int
    seconds: float
    slowest: float
    """Of the cases, in seconds."""
    memory: int
    """How many bytes more than before the first case it held at most."""
    failures: list[str]


# Mutations: bytes and a random.Random -> bytes.


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


# The parent.


def fuzz(what: str, count: int, *, seed: int = 0, start: int = 0, memory: int) -> Report:
    """Runs cases start ... start + count of `fuzz_<what>.py` in a child process.

    Args:
      memory: how many bytes the child may allocate beyond what it holds before the first case.

    Raises:
      AssertionError: the child crashed or hung, by the number of the case.
    """
    command = [sys.executable, __file__, what, str(seed), str(start), str(count), str(memory)]
    environment = os.environ | {
        'PYTHONPATH': os.pathsep.join(map(str, PATHS)),
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '',
        'OMP_NUM_THREADS': '1',
    }
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryDirectory() as folder:
        options = dict(stdout=subprocess.PIPE, stderr=errors, cwd=folder, env=environment)
        with subprocess.Popen(command, **options) as child:
            last, report = _follow(child)
        errors.seek(0)
        log = errors.read()[-3000:].decode(errors='replace')
    replay = f'python tests/helpers/fuzzing.py {what} {seed} {last} 1'
    assert report is not None, (
        f'case {last} of {what} ended the child with {child.returncode}; replay: {replay}\n{log}'
    )
    return Report(**report)


def _follow(child: subprocess.Popen) -> tuple[str, dict | None]:
    """(the last case that was begun, the child's report). Kills a child that hangs."""
    last, rest, begun = 'none', b'', False
    while True:
        limit = CASE_S if begun else 10 * CASE_S  # it compiles before the first
        if not select.select([child.stdout], [], [], limit)[0]:
            child.kill()
            raise AssertionError(f'case {last} hung for {limit:.0f} s')
        content = os.read(child.stdout.fileno(), 1 << 16)
        if not content:
            return last, None
        *lines, rest = (rest + content).split(b'\n')
        for line in lines:
            if line.startswith(b'{'):
                return last, json.loads(line)
            last, begun = line.decode(), True


# The child.


class Tripwire:
    """Notes what code of a file would do. An audit hook cannot be taken away; it can be idle."""

    def __init__(self):
        self.met: list[str] = []
        self._thread = threading.local()
        self.armed = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if not self.armed:
            return
        writes = event == 'open' and isinstance(arguments[2], int) and arguments[2] & WRITING
        if event in FORBIDDEN or writes:
            self.met.append(f'{event}{arguments}')
            raise RuntimeError(f'the file would have done {event}{arguments}')


WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


def main(what: str, seed: str, start: str, count: str, memory: str = str(1 << 31)) -> None:
    """The child: prints the number of each case before it is read, and a report at the end."""
    module = importlib.import_module(f'fuzz_{what}')
    tripwire = Tripwire()
    failures, read, refused, slowest = [], 0, 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        state = module.prepare(Path(folder))
        limit = _status('VmSize') + int(memory)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        before, began = _status('VmRSS'), time.monotonic()
        Path('/proc/self/clear_refs').write_text('5')  # VmHWM counts from here
        for number in range(int(start), int(start) + int(count)):
            os.write(1, b'%d\n' % number)
            case = module.make(state, random.Random(f'{what} {seed} {number}'))
            case_began, tripwire.armed = time.monotonic(), True
            try:
                module.read(state, case)
                read += 1
            except module.ACCEPTED as error:
                refused += 1
                if problem := _hidden(error):
                    failures.append(f'case {number} {case}: {problem}')
            except BaseException:
                failures.append(f'case {number} {case}: {traceback.format_exc()[-1500:]}')
            finally:
                tripwire.armed = False
            slowest = max(slowest, time.monotonic() - case_began)
            failures += [f'case {number} {case}: {event}' for event in tripwire.met]
            tripwire.met.clear()
            if strange := module.leftovers(state):
                failures.append(f'case {number} {case}: wrote {strange}')
            if len(failures) >= FAILURES:
                break
        report = Report(
            read,
            refused,
            time.monotonic() - began,
            slowest,
            max(_status('VmHWM') - before, 0),
            failures,
        )
    os.write(1, json.dumps(report._asdict()).encode() + b'\n')


def _hidden(error: BaseException | None) -> str | None:
    """Out of memory, wrapped in an error of another type."""
    while error is not None:
        if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
            return f'out of memory: {error!r}'
        error = error.__cause__ or error.__context__
    return None


def _status(field: str) -> int:
    """Bytes, of /proc/self/status."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith(f'{field}:'):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def case_bytes(rng: random.Random, seeds: dict[str, bytes], weights: dict[str, int]) -> Any:
    """(name of the file it is made of, its mutated bytes)."""
    name = rng.choices(list(weights), list(weights.values()))[0]
    return name, mutate(seeds[name], rng, list(seeds.values()))


if __name__ == '__main__':
    main(*sys.argv[1:])
