"""What the processes of a run decide together, before any of them enters a collective alone.

Processes differ in what they see and measure: a network file system shows a file to one of them
later than to another, and clocks disagree. Process 0 decides, and the others take its word.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from mae_jax.errors import UserError

FIRST_BYTES = 1024
"""Bytes of a message in its first broadcast, its length included; most need no second one."""
SHARED_WITHIN_S = 60
"""Seconds for which network file systems may remember that a file did not exist."""
SHARE_STORAGE = (
    'All machines of a run must share the storage of its --workdir; where that is slow to show new '
    'files, run the same command again.'
)
"""What to do where a file is not seen in time."""
POLL_S = 0.5
"""Seconds between two looks for such a file."""

T = TypeVar('T')


def from_first(function: Callable[[], T]) -> T:
    """Calls `function` in process 0 alone and returns its result in every process.

    Every process of the run must call it. The result is one that JSON can represent. A UserError in
    process 0 is raised in all of them.
    """
    if _is_alone():
        return function()
    answer, error = {}, None
    if jax.process_index() == 0:
        try:
            answer = {'result': function()}
        except UserError as raised:
            answer, error = {'error': str(raised)}, raised
    answer = json.loads(_broadcast(json.dumps(answer).encode()))
    if 'error' in answer:
        raise error or UserError(answer['error'])
    return answer['result']


def gather(value: Any) -> list[Any]:
    """Returns the values of all processes, in their order, in every process.

    Every process of the run must call it; JSON can represent the value.
    """
    if _is_alone():
        return [value]
    message = json.dumps(value).encode()
    lengths = multihost_utils.process_allgather(np.int32(len(message)))
    rows = multihost_utils.process_allgather(_padded(message, int(lengths.max())))
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def find_unseen(sizes: Mapping[epath.Path, int | None]) -> epath.Path | None:
    """Waits until this process sees files that another has written; returns one that it does not.

    Waits `SHARED_WITHIN_S` seconds in all, and not at all for what lies in a bucket, which shows
    new objects at once.

    Args:
      sizes: path of a file or directory -> size of the file in bytes, None where any will do.
    """
    deadline = time.monotonic() + SHARED_WITHIN_S
    for path, size in sizes.items():
        if '://' in os.fspath(path):
            continue
        while not _is_seen(path, size):
            if time.monotonic() > deadline:
                return path
            time.sleep(POLL_S)
    return None


def _is_alone() -> bool:
    """Returns whether this is the only process, without starting a device that nothing needs."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def _is_seen(path: epath.Path, size: int | None) -> bool:
    try:
        return size in (None, path.stat().length)
    except OSError:
        return False


def _broadcast(message: bytes) -> bytes:
    """Returns the message of process 0 in every process."""
    length = len(message).to_bytes(4, 'big')
    first = bytes(_from_zero(_padded(length + message[: FIRST_BYTES - 4], FIRST_BYTES)))
    length = int.from_bytes(first[:4], 'big')
    if length <= FIRST_BYTES - 4:
        return first[4 : 4 + length]
    return bytes(_from_zero(_padded(message[:length], length)))[:length]


def _from_zero(array: np.ndarray) -> np.ndarray:
    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def _padded(message: bytes, length: int) -> np.ndarray:
    """Pads with zeros to the next power of two, since each length is compiled once."""
    array = np.zeros(1 << max(length - 1, 0).bit_length(), np.uint8)
    array[: len(message)] = np.frombuffer(message, np.uint8)
    return array
