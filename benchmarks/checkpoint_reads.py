"""Counts what each process of a run reads from files to save a checkpoint and to restore it.

    python benchmarks/checkpoint_reads.py --processes=4 --megabytes=64

Prints a Markdown table. Starts the processes on this machine, one CPU device each, over the
loopback. They hold a state of random numbers, save it twice and restore it; the second save is
counted, since the first imports modules. Bytes are those that the system has given to the process
(`rchar` of /proc/self/io), from its cache or from the disk.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from measure import hardware, markdown, versions

from mae_jax.checkpoints.manager import Checkpoints


def bytes_read() -> int:
    """Returns the bytes that this process has read so far."""
    return int(Path('/proc/self/io').read_text().split()[1])


def make_state(megabytes: int, fsdp: int, seed: int) -> dict[str, jax.Array]:
    """Makes arrays of 1 MB of random numbers, split over `fsdp` devices and replicated over the
    rest of them."""
    mesh = Mesh(np.array(jax.devices()).reshape(-1, fsdp), ('data', 'fsdp'))
    sharding = NamedSharding(mesh, PartitionSpec('fsdp' if fsdp > 1 else None))
    rng = np.random.default_rng(seed)
    arrays = [rng.random((1000, 250), np.float32) for _ in range(megabytes)]
    return {
        f'{number:03d}': jax.make_array_from_callback(
            array.shape, sharding, lambda index, array=array: array[index]
        )
        for number, array in enumerate(arrays)
    }


def measure(folder: Path, megabytes: int, fsdp: int) -> dict[str, float]:
    """Saves and restores as one process of several; returns megabytes read and seconds."""
    counts = {}
    with Checkpoints(folder / 'checkpoints') as checkpoints:
        for step in (1, 2):
            state = make_state(megabytes, fsdp, step)
            before, start = bytes_read(), time.perf_counter()
            checkpoints.save(step, state, {})
            checkpoints.wait()
            counts['saving'] = (bytes_read() - before) / 1e6
            counts['saving, s'] = time.perf_counter() - start
        before, start = bytes_read(), time.perf_counter()
        restored, step, _ = checkpoints.restore(state)
        jax.block_until_ready(restored)
        counts['restoring'] = (bytes_read() - before) / 1e6
        counts['restoring, s'] = time.perf_counter() - start
    assert step == 2
    for name, array in state.items():
        for old, new in zip(
            array.addressable_shards, restored[name].addressable_shards, strict=True
        ):
            np.testing.assert_array_equal(old.data, new.data)
    return counts


def start(folder: Path, processes: int, options: Sequence[str]) -> list[dict[str, float]]:
    """Runs this file in so many processes; returns what each of them measured."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{probe.getsockname()[1]}'
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
    command = [sys.executable, __file__, *options, f'--folder={folder}', f'--address={address}']
    children = [
        subprocess.Popen([*command, f'--index={index}'], env=environment)
        for index in range(processes)
    ]
    if any([child.wait() for child in children]):
        raise SystemExit('a process failed')
    return [json.loads((folder / f'{index}.json').read_text()) for index in range(processes)]


def table(counts: Sequence[dict[str, float]]) -> list[list[str]]:
    """Makes a row a process, and one of their sums and longest times."""
    rows = [[str(index), *(f'{x:.1f}' for x in each.values())] for index, each in enumerate(counts)]
    last = [
        max(each[name] for each in counts) if name.endswith(', s') else sum(c[name] for c in counts)
        for name in counts[0]
    ]
    return [*rows, ['all', *(f'{x:.1f}' for x in last)]]


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--processes', type=int, default=4)
    parser.add_argument('--fsdp', type=int, default=1, help='devices that share one copy')
    parser.add_argument('--megabytes', type=int, default=64, help='size of the state')
    parser.add_argument('--folder', type=Path, help=argparse.SUPPRESS)
    parser.add_argument('--address', help=argparse.SUPPRESS)
    parser.add_argument('--index', type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.address:
        jax.distributed.initialize(args.address, args.processes, args.index)
        counts = measure(args.folder, args.megabytes, args.fsdp)
        (args.folder / f'{args.index}.json').write_text(json.dumps(counts))
        return
    with tempfile.TemporaryDirectory() as folder:
        counts = start(Path(folder), args.processes, argv)
    print(f'{args.processes} processes, fsdp {args.fsdp}, a state of {args.megabytes} MB\n')
    head = ['process', 'MB read to save', 'seconds', 'MB read to restore', 'seconds']
    print(markdown([hardware(), versions()], head, table(counts)))


if __name__ == '__main__':
    main()
