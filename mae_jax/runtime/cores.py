"""What this process may use of its machine: processor cores and memory."""

import hashlib
import os
import socket
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

CGROUP = Path('/sys/fs/cgroup')
"""Limits of a container (version 2 of control groups, as the container sees them)."""


def num_cores() -> int:
    """Returns the number of processor cores that this process may use.

    Those that it is bound to, and no more than a container's limit of processor time amounts to.
    """
    bound = len(_bound_to()) or os.cpu_count() or 1
    limit, _, period = _read(CGROUP / 'cpu.max').strip().partition(' ')
    if limit.isdigit() and period.isdigit():
        bound = min(bound, max(int(limit) // int(period), 1))
    return bound


def available_memory() -> int | None:
    """Returns the bytes of memory that processes can still take; None where it is not known.

    Those of the machine, and no more than a container's limit leaves.
    """
    values = [line.split() for line in _read(Path('/proc/meminfo')).splitlines()]
    free = [int(value[1]) * 1024 for value in values if value[:1] == ['MemAvailable:']]
    limit, used = (_read(CGROUP / name).strip() for name in ('memory.max', 'memory.current'))
    if limit.isdigit() and used.isdigit():
        free.append(max(int(limit) - int(used), 0))
    return min(free, default=None)


def processes_here() -> int:
    """Returns how many processes of this run have the cores of this one, itself included.

    Every process of the run must call it. Those on another machine, in another container or bound
    to other cores do not count.
    """
    if jax.process_count() == 1:
        return 1
    place = f'{socket.gethostname()} {_read(Path("/proc/sys/kernel/random/boot_id"))}'
    place = hashlib.md5(f'{place} {sorted(_bound_to())}'.encode(), usedforsecurity=False)
    own = np.frombuffer(place.digest(), np.uint32)
    return int((multihost_utils.process_allgather(own) == own).all(axis=1).sum())


def _bound_to() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else set()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # another system, or no such limit
        return ''
