"""A stream that notices when its worker processes or reads die or hang.

A run then ends with a message instead of waiting for ever, and no worker outlives its parent.
"""

import atexit
import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grain

from mae_jax.errors import UserError

POLL_S = 0.5
"""How often a waiting thread checks for the end of the stream and for dead workers, in seconds."""


def start_worker(register: str, index: int, count: int) -> None:
    """Prepares a worker process; grain calls it first in each (its `worker_init_fn`).

    The worker ends with its parent, however that ends. It ignores SIGINT and SIGTERM, which are
    sent to whole process groups: the parent needs its workers until it has saved. Accelerators are
    left to the parent.

    Args:
      register: the folder in which the worker writes its process id, in a file named `index`.
      index: the number of the worker.
      count: of all workers.
    """
    del count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ['JAX_PLATFORMS'] = 'cpu'
    if 'jax' in sys.modules:  # grain imports it, and it has read the environment
        sys.modules['jax'].config.update('jax_platforms', 'cpu')
    Path(register, str(index)).write_text(str(os.getpid()))


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


class Stream:
    """Iterates over a grain dataset that a thread of its own reads ahead of its use.

    Args:
      make: builds the dataset; its argument is the `register` folder for `start_worker`.
      prepare: called with each element in the thread, ahead of its use.
      finish: called with the result of `prepare` when the element is handed out.
      timeout_s: how long one element may take, in seconds.

    Raises (from `next`):
      UserError: nothing came for `timeout_s`, or a worker process died.
      Any error of the dataset, of `prepare` or of `finish`. After an error the stream is closed.
    """

    def __init__(
        self,
        make: Callable[[str], grain.IterDataset],
        prepare: Callable,
        finish: Callable,
        timeout_s: float,
    ):
        self.timeout_s = timeout_s
        self._prepare = prepare
        self._finish = finish
        self._register = tempfile.TemporaryDirectory(prefix='mae_jax_workers_')
        self._workers: dict[int, multiprocessing.Process] = {}
        self._ready = queue.Queue(maxsize=1)  # grain buffers more
        self._closing = threading.Event()
        dataset = make(self._register.name)
        self._thread = threading.Thread(
            target=self._work, args=(dataset,), name='mae_jax-data', daemon=True
        )
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
        return [worker.pid for _, worker in sorted(self._workers.items())]

    def _wait(self) -> tuple:
        """Returns (element, None), or (None, the error that ends the stream)."""
        deadline = time.monotonic() + self.timeout_s
        while time.monotonic() < deadline:
            try:
                return self._ready.get(timeout=POLL_S)
            except queue.Empty:  # a worker killed while it wrote is not always noticed by grain
                if dead := self._dead_worker():
                    return None, dead
            finally:
                self._note_workers()
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
        self._note_workers()
        if kill:
            self._kill_workers()
        self._thread.join(timeout=1 if kill else 10)  # a read that hangs stays, in a daemon thread
        self._kill_workers()
        self._register.cleanup()

    def _work(self, dataset: grain.IterDataset) -> None:
        iterator = iter(dataset)
        try:
            while not self._closing.is_set():
                self._hand_over((self._prepare(next(iterator)), None))
        except BaseException as error:  # StopIteration as well: the reader raises it
            self._hand_over((None, error))
        iterator.close()

    def _hand_over(self, item) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(queue.Full):
                return self._ready.put(item, timeout=POLL_S)

    def _note_workers(self) -> None:
        """Keeps the process objects of workers that have registered, for their exit codes."""
        if self._closing.is_set() and not os.path.isdir(self._register.name):
            return
        children = {child.pid: child for child in multiprocessing.active_children()}
        for entry in Path(self._register.name).iterdir():
            child = children.get(int(entry.read_text() or 0))
            if child is not None:
                self._workers[int(entry.name)] = child

    def _kill_workers(self) -> None:
        for worker in self._workers.values():
            if worker.is_alive():
                worker.kill()

    def _dead_worker(self) -> UserError | None:
        for index, worker in sorted(self._workers.items()):
            if worker.exitcode:
                name = f'Data worker {index} (process {worker.pid})'
                return UserError(f'{name} {_exit_cause(worker.exitcode)}')
        return None

    def _name_dead_worker(self, error: BaseException) -> BaseException:
        """Replaces grain's error about a dead worker by one that names it."""
        if isinstance(error, RuntimeError) and 'Worker process' in str(error):
            return self._dead_worker() or UserError(f'A data worker died while it started: {error}')
        return error

    def _stall_message(self) -> str:
        text = f'No batch came from the data loader for {self.timeout_s:g} s'
        stopped = [
            f'data worker {index} (process {worker.pid}) is stopped'
            for index, worker in sorted(self._workers.items())
            if _is_stopped(worker.pid)
        ]
        cause = ', '.join(stopped) or 'a read may hang'
        return f'{text}: {cause}; look at the disk and the machine, or raise dataset.timeout_s.'


def _exit_cause(code: int) -> str:
    if code == -signal.SIGBUS:
        return 'was killed by SIGBUS: /dev/shm may be full; enlarge it or lower dataset.prefetch.'
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
