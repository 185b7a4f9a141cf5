"""What loads the images of a piece: threads of this process, or worker processes.

Both take tasks and give results in any order; `assembly.py` makes batches of them.
"""

import contextlib
import json
import mmap
import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mae_jax.data.loader.layout import Arrays, Layout, Memory
from mae_jax.data.loader.worker import MESSAGE_BYTES, offsets, pack
from mae_jax.errors import UserError

Load = Callable[[Any], Arrays]
"""item -> the rows of an image."""


class Result(NamedTuple):
    """Reports a task that is done."""

    number: int
    """Of its piece."""
    first: int
    """Its first image, counted in the piece."""
    error: BaseException | None


class Threads:
    """Loads images in threads of this process, into memory of its own for every piece.

    Attributes:
      lent: False: the arrays of a piece belong to whoever gets them.
      loaders: how many images are loaded at once.
      processes: none.
    """

    lent = False
    processes: Sequence[subprocess.Popen] = ()

    def __init__(self, load: Load, layout: Layout, threads: int):
        self.loaders = threads
        self._load, self._layout, self._memory = load, layout, Memory()
        self._tasks, self._results = queue.SimpleQueue(), queue.SimpleQueue()
        for number in range(threads):
            name = f'mae_jax-load-{number}'
            threading.Thread(target=self._run, name=name, daemon=True).start()

    def arrays(self, slot: int) -> Arrays:
        """Returns the arrays of a piece that are to be filled."""
        return self._layout.arrays(self._memory.take(self._layout.nbytes()))

    def submit(
        self, number: int, slot: int, arrays: Arrays, first: int, items: Sequence[Any]
    ) -> bool:
        """Starts to load images of a piece, from its image `first` on; False if it must wait."""
        self._tasks.put((number, arrays, first, items))
        return True

    def result(self, timeout_s: float) -> Result | None:
        """Returns what a task came to, or None where none is done in time."""
        with contextlib.suppress(queue.Empty):
            return self._results.get(timeout=timeout_s)
        return None

    def close(self) -> None:
        """Ends the threads; one that hangs in a read stays."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._tasks.get_nowait()
        for _ in range(self.loaders):
            self._tasks.put(None)

    def _run(self) -> None:
        while task := self._tasks.get():
            number, arrays, first, items = task
            error = None
            try:
                for place, item in enumerate(items, first):
                    self._layout.write(arrays, place, self._load(item))
            except BaseException as raised:
                error = raised
            self._results.put(Result(number, first, error))
            del task, arrays  # or this thread would keep them until its next task


START = (
    'import json, sys; arguments = json.loads(sys.argv[1]); sys.path[:] = arguments.pop("path"); '
    'from mae_jax.data.loader.worker import main; main(**arguments)'
)
"""The program of a worker."""


class Workers:
    """Loads images in worker processes, into memory that they share with this one.

    `load` is pickled once, into that memory; arrays in it are shared by all workers.

    Attributes:
      lent: True: the arrays of a piece are filled anew when their slot is used again.
      loaders: how many images are loaded at once.
      processes: the workers.

    Raises:
      UserError: this is not Linux, or `load` cannot be pickled.
    """

    lent = True

    def __init__(self, load: Load, layout: Layout, threads: int, workers: int, slots: int):
        if not hasattr(os, 'memfd_create'):
            raise UserError('worker processes need Linux: set dataset.workers=0.')
        self.loaders = workers * threads
        self._layout = layout
        sizes, blocks = _packed(load, layout)
        *starts, self._slots = offsets(sizes)
        size = self._slots + slots * layout.nbytes()
        memory = os.memfd_create('mae_jax-batches')  # has no name, and ends with its last process
        os.ftruncate(memory, size)
        self._memory = memoryview(mmap.mmap(memory, size))
        for start, block in zip(starts, blocks, strict=True):
            self._memory[start : start + block.nbytes] = block
        self._tasks, tasks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._results, results = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        life, self._life = os.pipe()
        passed = {'tasks': tasks.fileno(), 'results': results.fileno(), 'memory': memory}
        arguments = passed | {'life': life, 'buffers': sizes, 'slots': self._slots}
        arguments |= {'threads': threads, 'path': sys.path}
        self.processes = [
            subprocess.Popen(
                [sys.executable, '-c', START, json.dumps(arguments)],
                stdin=subprocess.DEVNULL,
                pass_fds=(*passed.values(), life),
                env=os.environ | {'JAX_PLATFORMS': 'cpu'},  # accelerators are left to this process
                process_group=0,  # a terminal's Ctrl-C is for this process alone
            )
            for _ in range(workers)
        ]
        tasks.close(), results.close(), os.close(life), os.close(memory)

    def arrays(self, slot: int) -> Arrays:
        """Returns the arrays of a piece that are to be filled."""
        return self._layout.arrays(self._memory, self._slots + slot * self._layout.nbytes())

    def submit(
        self, number: int, slot: int, arrays: Arrays, first: int, items: Sequence[Any]
    ) -> bool:
        """Starts to load images of a piece, from its image `first` on; False if it must wait."""
        try:  # waiting here would be for ever: the workers wait until their results are taken
            self._tasks.send(pickle.dumps((number, slot, first, items)), socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True

    def result(self, timeout_s: float) -> Result | None:
        """Returns what a task came to, or None where none is done in time."""
        self._results.settimeout(timeout_s)
        try:
            message = self._results.recv(MESSAGE_BYTES)
        except TimeoutError:
            return None
        if not message:
            time.sleep(timeout_s)  # all workers have ended; the stream names one
            return None
        task, error = pickle.loads(message)
        if task is None:
            raise error
        return Result(*task, error)

    def close(self) -> None:
        """Ends the workers, which need a moment."""
        for end in (self._tasks, self._results):
            end.close()
        os.close(self._life)


def _packed(load: Load, layout: Layout) -> tuple[list[int], list[memoryview]]:
    try:
        return pack((load, layout))
    except Exception as error:
        raise UserError(
            f'the data set cannot be sent to worker processes ({error}): set dataset.workers=0, or '
            'make what it keeps picklable.'
        ) from error
