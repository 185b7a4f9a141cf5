"""Tiny runs in processes of their own, on distinguishable images, to be killed."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from helpers.commands import ROOT, TINY
from helpers.environment import xla_flags
from helpers.tiny_runs import flat
from mae_jax.checkpoints.find import locate
from mae_jax.checkpoints.weights import restore_weights

IMAGES = 100
STEPS = 48
BATCH = 16
RUN = (
    *TINY,
    f'--config.num_steps={STEPS}',
    f'--config.batch_size={BATCH}',
    '--config.dataset.name=folder',
    '--config.dataset.train_split=train',
    '--config.dataset.eval_split=val',
    '--config.optimizer.warmup_epochs=0.5',
    '--config.eval_every_steps=8',
    '--config.image_every_steps=0',
    '--config.checkpoint_every_steps=4',
    '--config.log_every_steps=1',
    '--config.keep_last=2',
)
"""7.7 epochs of 100 images, so that epochs end within batches."""


def make_greys(root: Path, count: int = IMAGES) -> Path:
    """A folder of images of one grey each, 0, 1, ...; all held-out images are among them."""
    for split, greys in (('train', range(count)), ('val', range(0, count, 3))):
        for grey in greys:
            folder = root / split / 'ab'[grey % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 8), grey, np.uint8)
            Image.fromarray(pixels).save(folder / f'{grey:03d}.png')
    return root


def spawn(
    *arguments: str,
    log: Path,
    devices: int = 1,
    processes: int = 1,
    recorded: Path | None = None,
    **environment: str,
) -> list[subprocess.Popen]:
    """The real command in so many processes, each with so many CPU devices.

    What process i says goes to `log`, its name ending in .i where there are several; what it was
    given to `recorded`, see recording_main.py.
    """
    script = ['tests/helpers/recording_main.py'] if recorded else ['main.py']
    paths = os.pathsep.join(map(str, (ROOT, ROOT / 'tests')))
    shared = {'XLA_FLAGS': xla_flags(devices), 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': paths}
    if processes > 1:
        address = f'127.0.0.1:{free_port()}'
        shared |= {'JAX_COORDINATOR_ADDRESS': address, 'JAX_COORDINATOR_BIND_ADDRESS': address}
        shared |= {'JAX_NUM_PROCESSES': str(processes)}
    started = []
    for index in range(processes):
        own = {'JAX_PROCESS_ID': str(index)} if processes > 1 else {}
        if recorded:
            own['RECORD'] = f'{recorded}.{index}'
        with log_of(log, index, processes).open('w') as file:
            process = subprocess.Popen(
                [sys.executable, '-u', *script, *map(str, arguments)],
                cwd=ROOT,
                env=os.environ | shared | own | environment,
                # Those that run the tests in the background may ignore it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started.append(process)
    return started


def log_of(log: Path, index: int, processes: int) -> Path:
    return log if processes == 1 else Path(f'{log}.{index}')


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def ended(processes: Sequence[subprocess.Popen]) -> Iterator[None]:
    """None of the processes outlives what is within."""
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def finish(*arguments: str, log: Path, timeout: float = 400, **options) -> str:
    """Runs to the end, with status 0; returns the output of process 0."""
    count = options.get('processes', 1)
    processes = spawn(*arguments, log=log, **options)
    with ended(processes):
        statuses = wait_for(processes, timeout)
    printed = [log_of(log, index, count).read_text() for index in range(count)]
    assert statuses == [0] * count, '\n'.join(printed)
    return printed[0]


def wait_for(processes: Sequence[subprocess.Popen], timeout: float) -> list[int]:
    """Exit statuses, in order; raises where one does not end in time."""
    deadline = time.monotonic() + timeout
    return [p.wait(max(deadline - time.monotonic(), 0.1)) for p in processes]


def wait_until(reached: Callable[[], bool], processes: Sequence[subprocess.Popen]) -> bool:
    """Returns at once when `reached()`; False if a process ended before."""
    deadline = time.monotonic() + 300
    while not reached():
        if any(process.poll() is not None for process in processes):
            return False
        assert time.monotonic() < deadline, 'the moment never came'
        time.sleep(0.001)
    return True


def kill_when(reached: Callable[[], bool], processes: Sequence[subprocess.Popen], which: int = 0):
    """SIGKILLs one of the processes as soon as `reached()`; whether that came before its end."""
    came = wait_until(reached, processes)
    if came:
        os.kill(processes[which].pid, signal.SIGKILL)
        processes[which].wait()
    return came


def lines(workdir: Path) -> list[dict]:
    """Of metrics.jsonl, the last perhaps half written."""
    try:
        text = (workdir / 'metrics.jsonl').read_text()
    except OSError:
        return []
    return [json.loads(line) for line in text.split('\n')[:-1]]


def last_step(workdir: Path) -> int:
    """The last step that was logged: what the run has reached."""
    return max((line['step'] for line in lines(workdir)), default=0)


def losses(workdir: Path) -> dict[int, float]:
    """Step -> training loss; every step stands once."""
    actual = [(line['step'], line['loss']) for line in lines(workdir) if 'loss' in line]
    assert len(dict(actual)) == len(actual)
    return dict(actual)


def is_evaluating(workdir: Path, step: int) -> bool:
    """Whether that step is done, and its evaluation is not."""
    done = [line for line in lines(workdir) if line['step'] >= step]
    return bool(done) and not any('eval/loss' in line for line in done)


def is_saving(workdir: Path) -> bool:
    return any('tmp' in path.name for path in (workdir / 'checkpoints').glob('*'))


def parameters(workdir: Path) -> dict[str, bytes]:
    """Of the last step, as bytes, to be compared to the bit."""
    params, _, step, _ = restore_weights(*locate(workdir))
    assert step == STEPS
    return {name: value.tobytes() for name, value in flat(params).items()}


def given(recorded: Path) -> dict[int, list[int]]:
    """Step -> the greys of its global batch, row for row, in whichever process.

    A step that was done again must have been given the same.
    """
    batches: dict[int, dict[int, int]] = {}
    for path in recorded.parent.glob(f'{recorded.name}.*'):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            rows = batches.setdefault(entry['step'], {})
            for row, grey in entry['rows'].items():
                assert rows.setdefault(int(row), grey) == grey, f'step {entry["step"]}, row {row}'
    return {step: [rows[row] for row in range(BATCH)] for step, rows in batches.items()}


def check_exactly_once(recorded: Path) -> None:
    """Every example was given to the run exactly once an epoch, over all of its steps."""
    batches = given(recorded)
    assert sorted(batches) == list(range(1, STEPS + 1))
    greys = [grey for step in sorted(batches) for grey in batches[step]]
    for first in range(0, len(greys), IMAGES):
        epoch = greys[first : first + IMAGES]
        assert len(set(epoch)) == len(epoch)
    assert sorted(greys[:IMAGES]) == list(range(IMAGES))
