"""Provides what the benchmarks share: interleaved timing, descriptions of the machine, Markdown."""

import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mae_jax.runtime.cores import num_cores


class Contender(NamedTuple):
    """Describes a step to time."""

    name: str
    dtype: str
    run: Callable[[], float]
    """Runs some steps to completion and returns the loss of the last."""
    compile_s: float | None = None
    memory_gib: float | None = None
    """Peak memory of a device during a run."""


def interleaved(
    runs: Sequence[Callable],
    repeats: int,
    unmeasured: int = 0,
    clock: Callable[[], float | np.ndarray] = time.perf_counter,
) -> np.ndarray:
    """Times the runs alternately, after an unmeasured call of each.

    Args:
      runs: functions to time.
      repeats: number of turns.
      unmeasured: calls before each measured one. The first call of a turn is slowed by memory and
        caches that the other runs used, which would not happen in a process of its own.
      clock: returns seconds, or an array of them by several clocks; `time.process_time` counts
        those of this process alone.

    Returns:
      Seconds, [len(runs), repeats], and the clock's axes.
    """
    for run in runs:
        run()
    seconds = [[] for _ in runs]
    for _ in range(repeats):
        for i, run in enumerate(runs):
            for _ in range(unmeasured):
                run()
            start = clock()
            run()
            seconds[i].append(clock() - start)
    return np.array(seconds)


def both_clocks() -> np.ndarray:
    """Returns seconds on the wall, and of this process on all processors together."""
    return np.array([time.perf_counter(), time.process_time()])


def matmul_size() -> tuple[int, int]:
    """Returns the side and the number of products that make the time of dispatch negligible."""
    return (2048, 1) if jax.default_backend() == 'cpu' else (8192, 10)


def matmul(dtype: str) -> tuple[Callable[[], None], float]:
    """Makes a function that multiplies square matrices on the first device, and counts its FLOPs.

    Sums are float32, as in the model. The numbers are random, because a GPU multiplies constants
    faster.
    """
    size, products = matmul_size()
    # With this scale, the entries of every product are about 1.
    key = jax.random.key(0)
    a, b = (jax.random.normal(key, (size, size)) * scale for scale in (1, size**-0.5))
    a, b = a.astype(dtype), b.astype(dtype)

    @jax.jit
    def chain(a: jax.Array, b: jax.Array) -> jax.Array:
        for _ in range(products):
            a = jnp.dot(a, b, preferred_element_type=jnp.float32).astype(dtype)
        return a

    return lambda: jax.block_until_ready(chain(a, b)), 2.0 * size**3 * products


def held_bytes(compiled: jax.stages.Compiled) -> int:
    """Returns a device's memory by XLA's analysis: arguments, results and temporaries."""
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return held + memory.output_size_in_bytes - memory.alias_size_in_bytes


def others_cpu_share() -> Callable[[], float | None]:
    """Starts a measurement; the returned function gives other processes' share of CPU time since.

    It returns None where there is no /proc/stat. Threads that wait for each other lose far more
    than their share to a busy neighbour, and PyTorch's lose more than XLA's: only a quiet machine
    gives meaningful ratios.
    """
    stat = Path('/proc/stat')

    def seconds() -> np.ndarray:
        ticks = np.array(stat.read_text().split('\n', 1)[0].split()[1:9], float)
        idle = ticks[3] + ticks[4]
        total, busy = ticks.sum(), ticks.sum() - idle
        return np.array([total, busy]) / os.sysconf('SC_CLK_TCK')

    if not stat.exists():
        return lambda: None

    def own_seconds() -> float:
        return sum(os.times()[:4])  # of this process and of children that have ended

    first, own = seconds(), own_seconds()

    def share() -> float:
        total, busy = seconds() - first
        return max(busy - (own_seconds() - own), 0.0) / max(total, 1e-9)

    return share


def hardware() -> str:
    """Describes the devices: number and kind, on a CPU also its vector instructions."""
    devices = jax.devices()
    if devices[0].platform != 'cpu':
        return f'{len(devices)} x {devices[0].device_kind}'
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    fields = dict(line.split(':', 1) for line in lines if ':' in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    sets = [
        s
        for s in ('avx2', 'avx512f', 'avx512_bf16', 'amx_bf16')
        if s in fields.get('flags', '').split()
    ]
    name = fields.get('model name', platform.processor())
    return f'{num_cores()} cores of {name} ({", ".join(sets)})'


def circumstances(repeats: int, others: float | None) -> list[str]:
    """Describes machine, versions and method in lines; `others` comes from `others_cpu_share`."""
    method = f'medians of {repeats} interleaved repeats'
    if others is not None:
        method += f'; other processes took {others:.0%} of the machine'
    return [hardware(), versions(), method]


def versions() -> str:
    """Lists the versions of Python and of the libraries that are installed."""
    names = ['jax', 'jaxlib', 'flax', 'optax', 'torch', 'transformers', 'timm']
    installed = [n for n in names if importlib.util.find_spec(n)]
    return f'Python {platform.python_version()}, ' + ', '.join(
        f'{name} {importlib.metadata.version(name)}' for name in installed
    )


def rates(images: int, seconds: np.ndarray) -> list[str]:
    """Formats two cells: the median of images/s, and the slowest and fastest of the repeats."""
    median, slowest, fastest = (images / f(seconds) for f in (np.median, np.max, np.min))
    return [f'{median:.3g}', f'{slowest:.3g} - {fastest:.3g}']


def markdown(notes: Sequence[str], head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats notes as a Markdown list, followed by a table."""
    lines = [f'- {note}' for note in notes] + ['']
    lines += [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
    return '\n'.join(lines + [f'| {" | ".join(row)} |' for row in rows])
