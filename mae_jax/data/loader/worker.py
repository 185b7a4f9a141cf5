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
    # All pages at once: one by one, their faults take longer than copying the images.
    shared = mmap.mmap(memory, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    replies = socket.socket(fileno=results)
    work = _Work(shared, buffers, slots, socket.socket(fileno=tasks), replies)
    for number in range(threads):
        threading.Thread(target=work.run, name=f'load-{number}', daemon=True).start()
    os.read(life, 1)
    os._exit(0)  # a thread may hang in a read


class _Work:
    def __init__(
        self,
        shared: mmap.mmap,
        buffers: list[int],
        slots: int,
        tasks: socket.socket,
        results: socket.socket,
    ):
        self._memory, self._slots = memoryview(shared), slots
        self._tasks, self._results = tasks, results
        try:
            self._load, self._layout = unpack(self._memory.toreadonly(), buffers)
        except BaseException as error:
            self._answer(None, error)
            os._exit(1)

    def run(self) -> None:
        while message := self._tasks.recv(MESSAGE_BYTES):
            number, slot, first, items = pickle.loads(message)
            error = None
            try:
                offset = self._slots + slot * self._layout.nbytes()
                arrays = self._layout.arrays(self._memory, offset)
                for place, item in enumerate(items, first):
                    self._layout.write(arrays, place, self._load(item))
            except BaseException as raised:
                error = raised
            self._answer((number, first), error)

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


def unpack(memory: memoryview, sizes: list[int]) -> object:
    """Makes the value of `pack` from its blocks; arrays stay in this memory, and are read-only."""
    blocks = [
        memory[start : start + size] for start, size in zip(offsets(sizes), sizes, strict=False)
    ]
    return pickle.loads(blocks[0], buffers=blocks[1:])
