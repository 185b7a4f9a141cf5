"""What several processes do with the checkpoints of one run; `play` starts them.

A scene is a function of the folder of the tests that every process calls. What each returns goes
to the test. A file system that shows a file late to one process is a copy of the directory in
which it is missing: that process alone is given the copy.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from helpers.checkpoints import flip_bit
from helpers.environment import xla_flags
from helpers.faulty_runs import ROOT, ended, free_port, log_of, wait_for
from mae_jax.checkpoints import integrity, write
from mae_jax.checkpoints.find import steps
from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.errors import UserError
from mae_jax.runtime import agreement
from mae_jax.training.save_timer import SaveTimer
from mae_jax.training.sharding import put

SIZE = 1 << 22
"""Float32 values in the large array: 16 MiB that do not compress."""


def play(folder: Path, processes: int, devices: int = 1) -> list[dict[str, Any]]:
    """Plays every scene in so many processes; returns what each process returned, by scene."""
    address = f'127.0.0.1:{free_port()}'
    shared = {'XLA_FLAGS': xla_flags(devices), 'JAX_PLATFORMS': 'cpu', 'COORDINATOR': address}
    shared |= {'PYTHONPATH': os.pathsep.join(map(str, (ROOT, ROOT / 'tests')))}
    started = []
    for index in range(processes):
        with log_of(folder / 'log', index, processes).open('w') as log:
            command = [sys.executable, '-u', __file__, str(folder), str(index), str(processes)]
            process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | shared, stdout=log, stderr=subprocess.STDOUT
            )
        started.append(process)
    with ended(started):
        statuses = wait_for(started, 300)
    logs = [log_of(folder / 'log', index, processes).read_text() for index in range(processes)]
    assert statuses == [0] * processes, '\n'.join(logs)
    return [json.loads((folder / f'result.{index}').read_text()) for index in range(processes)]


def make_state(step: int, fsdp: int = 1) -> dict[str, jax.Array]:
    """Makes arrays of several dtypes over all devices.

    Large ones are split over `fsdp` of them, and the last over all, as what an optimiser keeps.
    """
    mesh = Mesh(np.array(jax.devices()).reshape(-1, fsdp), ('data', 'fsdp'))
    values = np.random.default_rng(step).standard_normal(SIZE, np.float32).reshape(1024, -1)
    values[0, :3] = -0.0, np.nan, np.inf
    state = {
        'large': values,
        'half': values[:64].astype(jnp.bfloat16),
        'bytes': (values[:64] * 50).astype(np.int8),
        'mask': values[0, :8] > 0,
        'step': np.int32(step),
        'moment': values[:64].reshape(64, 64, -1) ** 2,
    }
    for number in range(30):  # so many that some are sent while others are
        state |= {
            f'bias {number}': values[1, :64] + number,
            f'kernel {number}': values[64:128, :64],
        }

    def lay_out(array: np.ndarray) -> jax.Array:
        spec = {2: PartitionSpec('fsdp'), 3: PartitionSpec(('fsdp', 'data'))}
        spec = spec.get(array.ndim, PartitionSpec())
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(lay_out, state)


def is_same(actual: dict[str, jax.Array], expected: dict[str, jax.Array]) -> bool:
    """Returns whether the shards of this process are equal to the bit."""

    def parts(array: jax.Array) -> list[tuple]:
        shards = sorted(array.addressable_shards, key=lambda shard: shard.device.id)
        return [(array.dtype, array.sharding, np.asarray(s.data).tobytes()) for s in shards]

    return all(parts(actual[name]) == parts(expected[name]) for name in expected)


def read_bytes() -> int:
    """Returns the bytes that this process has read from files so far."""
    return int(Path('/proc/self/io').read_text().split()[1])


@contextlib.contextmanager
def counted(counts: dict[str, int], name: str) -> Iterator[None]:
    before = read_bytes()
    yield
    counts[name] = read_bytes() - before


def restored(directory: Path, fsdp: int = 1) -> dict[str, Any]:
    """Restores from a directory, or returns the sentence of the error."""
    lines = []
    try:
        with Checkpoints(directory, score='top1', log=lines.append) as checkpoints:
            state, step, meta = checkpoints.restore(make_state(0, fsdp))
            best = checkpoints.best()
    except UserError as error:
        return {'error': str(error)}
    same = is_same(state, make_state(step, fsdp))
    return {'step': step, 'meta': meta, 'same': same, 'best': best, 'lines': lines}


def save_and_restore(folder: Path) -> dict[str, Any]:
    """Saves two steps under each layout that the devices allow, and counts what is read."""
    results = {}
    for fsdp in {1, jax.local_device_count(), jax.device_count()}:
        counts, directory = {}, folder / f'fsdp{fsdp}'
        with Checkpoints(directory, score='top1') as checkpoints:
            for step in (1, 2):
                state = make_state(step, fsdp)
                with counted(counts, 'saving'):
                    meta = {'top1': 0.1 * step, 'process': jax.process_index()}
                    checkpoints.save(step, state, meta)
                    checkpoints.wait()
            with counted(counts, 'restoring'):
                state, step, meta = checkpoints.restore(make_state(0, fsdp))
        assert is_same(state, make_state(2, fsdp)), fsdp
        results[str(fsdp)] = counts | {'step': step, 'meta': meta}
    return results


def hidden(folder: Path) -> dict[str, Any]:
    """Hides a file from the last process: for a second, and for ever."""
    source, last = folder / 'fsdp1', jax.process_index() == jax.process_count() - 1
    results = {}
    for name in ('', '2', '2/checksums.txt', '2/meta/metadata', '2/state/_METADATA'):
        for returns in (True, False):
            directory, timer = source, threading.Timer(1.0, lambda: None)
            if last:
                directory = folder / 'seen' / f'{name.replace("/", "-")}-{returns}'
                shutil.copytree(source, directory)
                away = (directory / name).rename(folder / 'hidden')
                if returns:
                    timer = threading.Timer(1.0, away.rename, [directory / name])
            timer.start()
            with mock.patch.object(agreement, 'SHARED_WITHIN_S', 30 if returns else 0.6):
                results[f'{name} {returns}'] = restored(directory)
            timer.join()  # a restore that never asks for the file ends before it is back
            if last and not returns:
                shutil.rmtree(away) if away.is_dir() else away.unlink()
    return results


def damaged(folder: Path) -> dict[str, Any]:
    """Flips a bit in the largest file of each process in turn."""
    results = {}
    for process in range(jax.process_count()):
        directory = folder / f'damaged{process}'
        if jax.process_index() == 0:
            shutil.copytree(folder / 'fsdp1', directory)
            files = (directory / '2' / 'state' / f'ocdbt.process_{process}').rglob('*')
            flip_bit(max(filter(Path.is_file, files), key=lambda path: path.stat().st_size))
        agreement.gather(None)
        results[str(process)] = restored(directory)
    return results


def slow_disk(folder: Path) -> dict[str, Any]:
    """Has the last process end its writes five seconds after the others."""
    last = jax.process_index() == jax.process_count() - 1

    def late(*arguments: Any) -> None:
        time.sleep(5 * last)
        integrity.write_own_checksums(*arguments)

    directory = folder / 'slow'
    state = make_state(1)
    with mock.patch.object(write, 'write_own_checksums', late), Checkpoints(directory) as saved:
        start = time.monotonic()
        saved.save(1, state, {})
        blocked, early = time.monotonic() - start, steps(directory)
        saved.wait()
        took = time.monotonic() - start
    return {'blocked': blocked, 'early': early, 'took': took, **restored(directory)}


def clocks(folder: Path) -> dict[str, Any]:
    """Asks a timer of five minutes after each of 100 steps of 10 s, by the clock of process 0."""
    process, now = jax.process_index(), 0.0
    timer = SaveTimer(5, 0, clock=lambda: 1e6 * process - now * process if process else now)
    due = []
    for step in range(1, 101):
        now += 10.0
        if timer.due(step):
            due.append(step)
            timer.saved(step)
    return {'due': due}


def scores(folder: Path) -> dict[str, Any]:
    """Measures another score in each process, and keeps the best checkpoint beside the last."""
    process, best = jax.process_index(), []
    measured = [(0.5, 0.9), (0.8, 0.1), (0.6, 0.95), (0.7, 0.2)]  # of process 0, of the others
    with Checkpoints(folder / 'scores', keep_last=1, score='top1') as checkpoints:
        for step, pair in enumerate(measured, 1):
            score = pair[min(process, 1)]
            best.append(checkpoints.is_best(score))
            checkpoints.save(step, make_state(step), {'top1': score})
        checkpoints.wait()
        return {'is_best': best, 'kept': checkpoints.steps(), 'best': checkpoints.best()}


def laid_out(folder: Path) -> dict[str, Any]:
    """Lays out an array that differs from process to process, which only a comparison notices."""
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ('data',)), PartitionSpec())
    array = put(np.full(8, jax.process_index(), np.float32), sharding)
    return {'values': [np.asarray(shard.data).tolist() for shard in array.addressable_shards]}


def other_layouts(folder: Path) -> dict[str, Any]:
    """Restores into other layouts than those which were saved."""
    layouts = sorted({1, jax.local_device_count(), jax.device_count()})
    pairs = [(saved, fsdp) for saved in layouts for fsdp in layouts if saved != fsdp]
    return {f'{old} {new}': restored(folder / f'fsdp{old}', new) for old, new in pairs}


SCENES = (save_and_restore, other_layouts, hidden, damaged, slow_disk, clocks, scores, laid_out)


def main(folder: Path, index: int, processes: int) -> None:
    """Plays every scene as one of the processes."""
    jax.distributed.initialize(os.environ['COORDINATOR'], processes, index)
    results = {}
    for scene in SCENES:
        print(scene.__name__, flush=True)
        results[scene.__name__] = scene(folder)
    (folder / f'result.{index}').write_text(json.dumps(results))


if __name__ == '__main__':
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
