"""Measures the time from a command to the end of its first step, with a cold and a warm cache.

    python benchmarks/startup.py --variant=vit_large --batch_size=2 --repeats=3

Prints a Markdown table. Every figure comes from a process of `python main.py` with
configs/default.py and synthetic images, timed from its start to the log line of its first step;
then it is killed, before it writes a checkpoint. Each cold start has an empty compilation cache
(JAX_COMPILATION_CACHE_DIR), which the warm start after it reuses. One unmeasured process runs
first, to load Python's files into the page cache.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from measure import circumstances, markdown, others_cpu_share

from mae_jax.models.vit import VARIANTS

ROOT = Path(__file__).parents[1]
STAGES = {
    'imports, data, initialisation': re.compile(r'parameters, [\d,]+ of them trained'),
    'to "compiling the step"': re.compile('compiling the step'),
    'compilation, first step': re.compile(r'step\s+1/1\s'),
}
"""Name of a stage -> pattern of the line with which it ends."""


def start(arguments: Sequence[str], cache: Path, workdir: Path) -> list[float]:
    """Runs main.py until its first step has ended; returns the seconds of each of `STAGES`.

    Raises:
      RuntimeError: the process ended before its first step; the message has its last output.
    """
    environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': str(cache), 'PYTHONUNBUFFERED': '1'}
    command = [sys.executable, 'main.py', f'--workdir={workdir}', *arguments]
    ends, printed = [], []
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        patterns = list(STAGES.values())
        for line in process.stdout:
            printed.append(line)
            if patterns[len(ends)].search(line):
                ends.append(time.perf_counter() - began)
            if len(ends) == len(patterns):
                return list(np.diff([0.0, *ends]))
        raise RuntimeError(f'{" ".join(command)} made no step:\n{"".join(printed[-20:])}')
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def measure(arguments: Sequence[str], repeats: int) -> np.ndarray:
    """Measures seconds [2, repeats, stages], cold then warm; each pair has a new cache."""
    measured = np.empty((2, repeats, len(STAGES)))
    for repeat in range(-1, repeats):
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder) / 'cache'
            for i, kind in enumerate(('cold', 'warm')):
                if repeat < 0 and kind == 'warm':
                    continue  # the unmeasured process is a cold start only
                seconds = start(arguments, cache, Path(folder) / kind)
                print(f'{kind}: {sum(seconds):.1f} s', file=sys.stderr, flush=True)
                if repeat >= 0:
                    measured[i, repeat] = seconds
    return measured


def table(measured: np.ndarray) -> tuple[list[str], list[list[str]]]:
    """Makes head and rows from the seconds that `measure` returns."""
    totals, stages = measured.sum(axis=2), np.median(measured, axis=1)
    medians = np.median(totals, axis=1)
    rows = [
        [
            name,
            f'{median:.1f}',
            f'{total.min():.1f} - {total.max():.1f}',
            *(f'{seconds:.1f}' for seconds in stage_seconds),
        ]
        for name, median, total, stage_seconds in zip(
            ('cold, s', 'warm, s'), medians, totals, stages, strict=True
        )
    ]
    ratios = totals[1] / totals[0]
    rows.append(
        [
            'warm / cold',
            f'{medians[1] / medians[0]:.2f}',
            f'{ratios.min():.2f} - {ratios.max():.2f}',
            *(f'{warm / cold:.2f}' for cold, warm in stages.T),
        ]
    )
    return ['start', 'to the end of step 1', 'least - most', *STAGES], rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--variant', default='vit_large', choices=VARIANTS)
    parser.add_argument('--batch_size', type=int, default=2)
    parser.add_argument('--image_size', type=int, default=224)
    parser.add_argument('--dtype', default='bfloat16', choices=['float32', 'bfloat16'])
    parser.add_argument('--repeats', type=int, default=3, help='pairs of a cold and a warm start')
    args = parser.parse_args(argv)

    arguments = [
        '--config=configs/default.py',
        '--config.dataset.name=synthetic',
        '--config.num_steps=1',
        '--config.log_every_steps=1',
        f'--config.model.variant={args.variant}',
        f'--config.model.dtype={args.dtype}',
        f'--config.batch_size={args.batch_size}',
        f'--config.image_size={args.image_size}',
    ]
    others = others_cpu_share()
    measured = measure(arguments, args.repeats)
    notes = circumstances(args.repeats, others())
    print(
        f'main.py with configs/default.py, {args.variant}, batch {args.batch_size}, '
        f'{args.image_size} px, {args.dtype}, synthetic images\n'
    )
    print(markdown(notes, *table(measured)))


if __name__ == '__main__':
    main()
