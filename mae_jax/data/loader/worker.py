"""A worker process, which loads images into memory that it shares with the process of the run.

It is started by `processes.py` as a program of its own: it runs nothing of the script that started
the run, and imports neither JAX nor grain.

All workers take tasks from one socket and answer through another. These keep messages apart
(SOCK_SEQPACKET), and the kernel gives each message to one worker.
"""

import contextlib
import mmap
import os
import pickle
import signal
import socket
import threading
import traceback
from typing import Any

import numpy as np

from mae_jax.data.loader.layout import ALIGNMENT

MESSAGE_BYTES = 60_000
"""Longest message; a longer error is shortened."""


def main(
    tasks: int,
    results: int,
    memory: int,
    life: int,
    *,
    buffers: list[int],
    slots: int,
    threads: int,
) -> None:
    """Loads images until the process of the run closes its end of `life`, or dies.

    SIGINT and SIGTERM are sent to whole process groups and ignored: the run needs its workers until
    it has saved.

    Args:
      tasks, results: file descriptors of sockets.
      memory: of the shared memory.
      life: of a pipe that nothing is written to.
      buffers: sizes in bytes: of the pickle at the start of the shared memory, and of the arrays
        after it that the pickle refers to.
      slots: offset in bytes of the pieces in the shared memory.
      threads: that load images.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    replies = socket.socket(fileno=results)
    work = _Work(memory, buffers, slots, socket.socket(fileno=tasks), replies)
    for number in range(threads):
        threading.Thread(target=work.run, name=f'load-{number}', daemon=True).start()
    os.read(life, 1)
    os._exit(0)  # a thread may hang in a read


class _Work:
    def __init__(
        self,
        memory: int,
        buffers: list[int],
        slots: int,
        tasks: socket.socket,
        results: socket.socket,
    ):
        self._memory, self._slots = memory, slots
        self._tasks, self._results = tasks, results
        try:
            self._load, self._layout = unpack(memory, buffers)
        except BaseException as error:
            self._answer(None, error)
            os._exit(1)

    def run(self) -> None:
        while message := self._tasks.recv(MESSAGE_BYTES):
            number, slot, first, items = pickle.loads(message)
            error = None
            try:
                start = self._slots + slot * self._layout.nbytes()
                for place, item in enumerate(items, first):
                    for offset, values in self._layout.blocks(place, self._load(item)):
                        self._write(values, start + offset)
            except BaseException as raised:
                error = raised
            self._answer((number, first), error)

    def _write(self, values: np.ndarray, offset: int) -> None:
        # Not through memory of its own, in which each of many workers would map each page.
        if (count := os.pwrite(self._memory, values, offset)) < values.nbytes:
            raise OSError(f'only {count} of {values.nbytes} bytes could be written to memory')

    def _answer(self, task: tuple[int, int] | None, error: BaseException | None) -> None:
        with contextlib.suppress(OSError):  # the run has ended
            self._results.send(pickle.dumps((task, _sendable(error))))


def _sendable(error: BaseException | None) -> BaseException | None:
    """Returns an error that can be pickled and fits into a message."""
    if error is None:
        return None
    with contextlib.suppress(Exception):  # some can be pickled and not made again
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
        if len(pickled) < MESSAGE_BYTES - 1000:
            return error
    text = ''.join(traceback.format_exception(error))
    return RuntimeError(text[-MESSAGE_BYTES // 5 :])


def pack(value: object) -> tuple[list[int], list[memoryview]]:
    """Pickles a value; its arrays stay where they are.

    Returns:
      Sizes in bytes, and the blocks of memory that have them: the pickle, then every array.
    """
    import cloudpickle

    buffers = []
    pickled = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    blocks = [memoryview(pickled), *(buffer.raw() for buffer in buffers)]
    return [block.nbytes for block in blocks], blocks


def offsets(sizes: list[int]) -> list[int]:
    """Returns where blocks of these sizes lie in shared memory, and where the last one ends."""
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
    return ends


def unpack(memory: int, sizes: list[int]) -> Any:
    """Makes the value of `pack` from its blocks; arrays stay in this memory, and are read-only."""
    *starts, end = offsets(sizes)
    shared = memoryview(mmap.mmap(memory, end, access=mmap.ACCESS_READ))
    blocks = [shared[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    return pickle.loads(blocks[0], buffers=blocks[1:])
