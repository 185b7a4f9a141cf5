"""A stream that notices when its worker processes or reads die or hang.

A run then ends with a message instead of waiting for ever, and no worker outlives its parent.
"""

import atexit
import contextlib
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mae_jax.data.loader.assembly import POLL_S
from mae_jax.data.loader.readers import Threads, Workers
from mae_jax.errors import UserError

Readers = Threads | Workers


class Stream:
    """Iterates over elements that a thread of its own makes ahead of their use.

    Args:
      readers: starts the threads or processes that load images; None where there is nothing to
        load. It is called in the thread.
      elements: makes the iterator, whose argument `stop` ends it.
      finish: called with each element when it is handed out.
      timeout_s: how long one element may take, in seconds.

    Raises (from `next`):
      UserError: nothing came for `timeout_s`, or a worker process died.
      Any error of the arguments. After an error the stream is closed.
    """

    def __init__(
        self,
        readers: Callable[[], Readers] | None,
        elements: Callable[[Readers, threading.Event], Iterator[Any]],
        finish: Callable[[Any], dict],
        timeout_s: float,
    ):
        self.timeout_s = timeout_s
        self._start, self._elements, self._finish = readers, elements, finish
        self._readers: Readers | None = None
        self._ready = queue.Queue(maxsize=1)  # the readers have more
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, name='mae_jax-data', daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def __iter__(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def ready(self) -> bool:
        """Returns whether `next` would return at once."""
        return not self._ready.empty()

    def __next__(self):
        if self._closing.is_set():
            raise StopIteration
        element, error = self._wait()
        error = error or self._dead_worker()  # the others would go on, slower
        if error is None:
            try:
                return self._finish(element)
            except BaseException:
                self.close()
                raise
        error = self._name_dead_worker(error)
        self.close(kill=not isinstance(error, StopIteration))
        raise error

    def worker_pids(self) -> list[int]:
        """Returns the process ids of the workers that have started, in the order of workers."""
        return [worker.pid for worker in self._processes()]

    def _processes(self) -> Sequence[subprocess.Popen]:
        return self._readers.processes if self._readers else ()

    def _wait(self) -> tuple:
        """Returns (element, None), or (None, the error that ends the stream)."""
        deadline = time.monotonic() + self.timeout_s
        while time.monotonic() < deadline:
            try:
                return self._ready.get(timeout=POLL_S)
            except queue.Empty:
                if dead := self._dead_worker():
                    return None, dead
        return None, UserError(self._stall_message())

    def close(self, kill: bool = False) -> None:
        """Ends the thread and the worker processes.

        Args:
          kill: do not wait for them: they may hang.
        """
        atexit.unregister(self.close)
        self._closing.set()
        with contextlib.suppress(queue.Empty):
            self._ready.get_nowait()
        if kill:
            self._kill_workers()
        self._thread.join(timeout=1 if kill else 10)  # a read that hangs stays, in a daemon thread
        self._kill_workers()

    def _work(self) -> None:
        try:
            if self._start is not None:
                self._readers = self._start()
                for element in self._elements(self._readers, self._closing):
                    self._hand_over((element, None))
                    del element
            raise StopIteration
        except BaseException as error:  # StopIteration as well: the reader raises it
            self._hand_over((None, error))
        finally:
            if self._readers:
                self._readers.close()

    def _hand_over(self, item) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(queue.Full):
                return self._ready.put(item, timeout=POLL_S)

    def _kill_workers(self) -> None:
        for worker in self._processes():
            worker.kill()
        for worker in self._processes():
            worker.wait()

    def _dead_worker(self) -> UserError | None:
        for index, worker in enumerate(self._processes()):
            if worker.poll():
                name = f'Data worker {index} (process {worker.pid})'
                return UserError(f'{name} {_exit_cause(worker.returncode)}')
        return None

    def _name_dead_worker(self, error: BaseException) -> BaseException:
        """Replaces the error of a connection to dead workers by one that names a worker."""
        return (isinstance(error, OSError) and self._dead_worker()) or error

    def _stall_message(self) -> str:
        text = f'No batch came from the data loader for {self.timeout_s:g} s'
        stopped = [
            f'data worker {index} (process {worker.pid}) is stopped'
            for index, worker in enumerate(self._processes())
            if _is_stopped(worker.pid)
        ]
        cause = ', '.join(stopped) or 'a read may hang'
        return f'{text}: {cause}; look at the disk and the machine, or raise dataset.timeout_s.'


def _exit_cause(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f'was killed by {name}; if memory ran out, lower dataset.workers or prefetch.'
    return f'ended with exit status {code}; its own output above has the cause.'


def _is_stopped(pid: int) -> bool:
    try:
        state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except OSError:  # no such process, or no Linux
        return False
    return state in 'Tt'
