"""Runs tests and benchmarks on one GPU, and writes their outputs into one Markdown report.

    benchmarks/on_gpu.sh REPORT.md

Started by on_gpu.sh, which describes the machine it needs. The time limits of the sections add up
to less than nine minutes. A section that fails is in the report with the end of its output, and
the others still run; the exit status is then 1. `--rehearse` runs the sections on a CPU with a tiny
model, to test this script: its figures mean nothing.
"""

import argparse
import datetime
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import measure
from photographs import make_photographs

ROOT = Path(__file__).parents[1]
BENCHMARKS = Path('benchmarks')
LAST_LINES = 15  # of the output of a failed command


class Failed(Exception):
    """A section that did not end as it should; the message is Markdown."""


class Scale(NamedTuple):
    """Holds the sizes of everything that is run."""

    variant: str
    image_size: int
    batch_size: int
    photographs: int
    side: int
    """Of a photograph, in pixels."""
    step: tuple[str, ...]
    """Further arguments of train_step.py."""
    model: tuple[str, ...]
    """Further fields of a run."""
    chip: str
    topology: str
    """What `mae-jax plan --compile` compiles for."""
    refuses: bool
    """Whether the device has room for one run only."""
    patience: int
    """Factor on the time limits of the sections."""


GPU = Scale(
    variant='vit_large',
    image_size=224,
    batch_size=256,
    photographs=512,
    side=500,
    step=('--attention', 'plain', 'xla', 'cudnn', '--repeats=3', '--steps=5', '--peers', 'compile'),
    model=(),
    chip='h100',
    topology='1x1',
    refuses=True,
    patience=1,
)
REHEARSAL = Scale(
    variant='vit_tiny',
    image_size=32,
    batch_size=8,
    photographs=32,
    side=64,
    step=('--depth=1', '--repeats=1', '--peers'),
    model=('--config.model.depth=1', '--config.model.decoder_depth=1'),
    chip='v5e',
    topology='2x2',
    refuses=False,
    patience=20,
)


class Section(NamedTuple):
    """Describes a section: `make` returns its Markdown, within `seconds`."""

    title: str
    seconds: float
    make: Callable[['Commands'], str]


class Commands:
    """Runs the commands of a section in `folder`, until its time is over.

    Attributes:
      scale: sizes of what is run.
      folder: of everything that is written.
    """

    def __init__(self, scale: Scale, folder: Path, seconds: float):
        self.scale, self.folder = scale, folder
        self._deadline = time.monotonic() + seconds

    def python(self, *arguments: str | Path) -> str:
        """Runs Python, and returns what it printed on standard output.

        Raises:
          Failed: it failed or took too long.
        """
        try:
            done = subprocess.run(
                [sys.executable, *map(str, arguments)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=self.seconds_left(),
            )
        except subprocess.TimeoutExpired as error:
            output = (error.stdout or b'') + (error.stderr or b'')
            text = output.decode(errors='replace')
            raise Failed(f'**Stopped: out of time.**\n\n{block(text)}') from error
        if done.returncode:
            text = done.stdout + done.stderr
            raise Failed(f'**Failed with status {done.returncode}.**\n\n{block(text)}')
        return done.stdout

    def seconds_left(self) -> float:
        """Returns the time until the section has to end, at least one second."""
        return max(self._deadline - time.monotonic(), 1.0)

    def train(self, *fields: str) -> list[str]:
        """Returns the arguments of a run of the paper's pretraining at this scale."""
        scale = self.scale
        return [
            'main.py',
            '--config=configs/vit_large.py',
            f'--config.model.variant={scale.variant}',
            f'--config.image_size={scale.image_size}',
            f'--config.batch_size={scale.batch_size}',
            '--config.eval_every_steps=0',
            '--config.image_every_steps=0',
            '--config.log_every_steps=2',
            *scale.model,
            *fields,
        ]


def block(text: str, lines: int = LAST_LINES) -> str:
    """Formats the last lines of an output."""
    return '\n'.join(['```text', *text.strip().splitlines()[-lines:], '```'])


def tests(commands: Commands) -> str:
    """Runs the tests that are marked accelerator."""
    options = [
        '-o',
        'addopts=--import-mode=importlib',
        '-p',
        'no:cacheprovider',
        '-m',
        'accelerator',
    ]
    return block(commands.python('-m', 'pytest', *options, '-rA', '-q', 'tests/accelerator'))


def kill_and_resume(commands: Commands) -> str:
    """Compares a killed run with one left alone, both deterministic."""
    fields = ['--config.deterministic=True', '--config.dataset.name=synthetic']
    fields += ['--config.num_steps=12', '--config.checkpoint_every_steps=4']
    fields += ['--config.model.dtype=bfloat16', '--config.optimizer.warmup_epochs=0']
    command = commands.train(*fields)[2:]
    return commands.python(BENCHMARKS / 'kill_and_resume.py', 'configs/vit_large.py', *command)


def training_step(commands: Commands, dtype: str) -> str:
    """Measures the step for each attention, beside PyTorch's."""
    scale = commands.scale
    sizes = [f'--variant={scale.variant}', f'--batch_size={scale.batch_size}']
    sizes += [f'--image_size={scale.image_size}', f'--dtypes={dtype}']
    return commands.python(BENCHMARKS / 'train_step.py', *sizes, *scale.step)


def input_pipeline(commands: Commands) -> str:
    """Prepares photographs, and trains on them with a trace of three steps."""
    scale, photographs = commands.scale, commands.folder / 'photographs'
    make_photographs(photographs, scale.photographs, scale.side, scale.side)
    commands.python('-m', 'mae_jax', 'prepare', photographs, commands.folder / 'prepared')
    fields = ['--config.num_steps=16', '--config.profile_steps=8,10', *prepared(commands)]
    workdir = commands.folder / 'profiled'
    return block(commands.python(*commands.train(*fields), f'--workdir={workdir}'), 30)


def planned_memory(commands: Commands) -> str:
    """Compiles the step ahead of time, to compare its memory with what the step then takes."""
    scale = commands.scale
    fields = commands.train('--config.model.attention=plain', '--config.model.dtype=bfloat16')[2:]
    chip = ['--compile', '--chip', scale.chip, '--topology', scale.topology, '--examples=1000000']
    return block(commands.python('-m', 'mae_jax', 'plan', 'vit_large', *chip, *fields), 60)


def prepared(commands: Commands) -> list[str]:
    """Returns the fields of a run on the prepared photographs."""
    data = commands.folder / 'prepared'
    fields = ['--config.dataset.name=prepared', f'--config.dataset.path={data}']
    return [*fields, '--config.optimizer.warmup_epochs=0']


def kernels(commands: Commands) -> str:
    """Lists the kernels of the trace that `input_pipeline` left."""
    return commands.python(BENCHMARKS / 'kernels.py', commands.folder / 'profiled')


def two_runs(commands: Commands) -> str:
    """Starts a second run while one holds the GPU: it has to end with one sentence."""
    first, second = commands.folder / 'first', commands.folder / 'second'
    long = commands.train(*prepared(commands), '--config.num_steps=100000')
    running = subprocess.Popen(
        [sys.executable, *long, f'--workdir={first}'],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    limit = threading.Timer(commands.seconds_left(), running.kill)
    limit.start()
    try:
        output = ''
        for line in running.stdout:
            output += line
            if line.startswith('step '):
                break
        else:
            raise Failed(f'**The first run failed.**\n\n{block(output)}')
        short = commands.train(*prepared(commands), '--config.num_steps=4')
        text = commands.python(*short, f'--workdir={second}')
    except Failed as failed:
        refusal = str(failed)
        if commands.scale.refuses and 'status 1.' in refusal and 'Traceback' not in refusal:
            return refusal.replace('Failed', 'Refused, as it has to be,')
        raise
    finally:
        limit.cancel()
        running.kill()
        running.wait()
    if commands.scale.refuses:
        raise Failed(f'**Both ran.**\n\n{block(text)}')
    return 'A CPU takes both runs.'


def sections() -> Iterator[Section]:
    """Yields what the report consists of, the most important first."""
    yield Section('Tests that need an accelerator', 50, tests)
    yield Section('Killed and resumed, `deterministic=True`', 70, kill_and_resume)
    yield Section('Input from prepared data', 80, input_pipeline)
    yield Section('The largest kernels', 10, kernels)
    yield Section('Two runs on one GPU', 45, two_runs)
    yield Section('Memory by `mae-jax plan --compile`, bfloat16', 60, planned_memory)
    for dtype, seconds in (('bfloat16', 130), ('float32', 90)):
        yield Section(f'The training step, {dtype}', seconds, partial(training_step, dtype=dtype))


def head(rehearse: bool) -> str:
    """Returns the first lines of the report."""
    commit = subprocess.run(
        ['git', 'describe', '--always', '--dirty'], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    lines = ['# One GPU: tests and figures', '']
    if rehearse:
        lines += ['**A rehearsal on a CPU, with a tiny model: the figures mean nothing.**', '']
    lines += [f'- {datetime.date.today()}, {commit or "no commit"}: `benchmarks/on_gpu.sh`']
    return '\n'.join([*lines, f'- {measure.hardware()}', f'- {measure.versions()}'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('report', type=Path, help='the Markdown file to write')
    parser.add_argument('--rehearse', action='store_true', help='on a CPU, with a tiny model')
    args = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as folder, args.report.open('w') as report:
        os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', f'{folder}/cache')
        print(head(args.rehearse), file=report, flush=True)
        for title, seconds, make in sections():
            print(f'{title} ...', flush=True)
            start = time.monotonic()
            scale = REHEARSAL if args.rehearse else GPU
            try:
                text = make(Commands(scale, Path(folder), seconds * scale.patience))
            except Failed as failed:
                text, failures = str(failed), failures + 1
            took = time.monotonic() - start
            print(f'\n## {title}\n\n{text.strip()}\n\n{took:.0f} s', file=report, flush=True)
    if failures:
        raise SystemExit(f'{failures} section(s) failed: see {args.report}')


if __name__ == '__main__':
    main()
