"""What the benchmarks share: timing in turn, and naming what was measured on."""

import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np


def interleaved(
    runs: Sequence[Callable],
    repeats: int,
    unmeasured: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> np.ndarray:
    """Seconds of each run, [len(runs), repeats]: one of each in turn, after one unmeasured.

    The first call of a turn pays for the memory and the caches that the others took, which a
    process that does nothing else never does: where that matters, leave `unmeasured` calls a turn
    out. `clock` gives seconds; `time.process_time` counts those of this process alone.
    """
    for run in runs:
        run()
    seconds = np.empty((len(runs), repeats))
    for repeat in range(repeats):
        for i, run in enumerate(runs):
            for _ in range(unmeasured):
                run()
            start = clock()
            run()
            seconds[i, repeat] = clock() - start
    return seconds


def held_bytes(compiled: jax.stages.Compiled) -> int:
    """What XLA says a device holds while it runs: arguments, results and what is between."""
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return held + memory.output_size_in_bytes - memory.alias_size_in_bytes


def num_cores() -> int:
    """Those this process may use, which is how many threads XLA starts."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def others_cpu_share() -> Callable[[], float | None]:
    """Starts a watch; calling it gives other processes' share of all CPU time since (Linux).

    Threads that wait for each other lose far more than their share to a busy neighbour, and
    PyTorch's lose more than XLA's: only a quiet machine gives a ratio worth quoting.
    """
    stat = Path('/proc/stat')

    def seconds() -> np.ndarray:
        ticks = np.array(stat.read_text().split('\n', 1)[0].split()[1:9], float)
        idle = ticks[3] + ticks[4]
        total, busy = ticks.sum(), ticks.sum() - idle
        return np.array([total, busy]) / os.sysconf('SC_CLK_TCK')

    if not stat.exists():
        return lambda: None
    first, own = seconds(), time.process_time()

    def share() -> float:
        total, busy = seconds() - first
        return max(busy - (time.process_time() - own), 0.0) / max(total, 1e-9)

    return share


def hardware() -> str:
    devices = jax.devices()
    if devices[0].platform != 'cpu':
        return f'{len(devices)} x {devices[0].device_kind}'
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    fields = dict(line.split(':', 1) for line in lines if ':' in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    sets = [s for s in ('avx2', 'avx512f', 'avx512_bf16') if s in fields.get('flags', '').split()]
    name = fields.get('model name', platform.processor())
    return f'{num_cores()} cores of {name} ({", ".join(sets)})'


def versions() -> str:
    names = ['jax', 'jaxlib', 'flax', 'optax', 'torch', 'transformers']
    installed = [n for n in names if importlib.util.find_spec(n)]
    return f'Python {platform.python_version()}, ' + ', '.join(
        f'{name} {importlib.metadata.version(name)}' for name in installed
    )
