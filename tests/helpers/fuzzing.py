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
import resource
import select
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from helpers import mutations

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
    return name, mutations.mutate(seeds[name], rng, list(seeds.values()))


if __name__ == '__main__':
    main(*sys.argv[1:])
