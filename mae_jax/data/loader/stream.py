"""Threads and processes that may die, hang or outlive their parent: watched, so that a run ends
with a sentence instead of waiting for ever.
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


def start_worker(register: str, index: int, count: int) -> None:
    """Runs first in a worker process (grain's `worker_init_fn`).

    A worker ends with its parent however that ends. It leaves Ctrl-C and SIGTERM, which whole
    process groups get, to the parent: that one must still be able to save. And an accelerator
    belongs to the parent.
    """
    del count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ['JAX_PLATFORMS'] = 'cpu'
    if 'jax' in sys.modules:  # grain imports it, and it reads the environment then
        sys.modules['jax'].config.update('jax_platforms', 'cpu')
    Path(register, str(index)).write_text(str(os.getpid()))


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


class Stream:
    """Iterates over a grain dataset in a thread that works ahead, and notices when it cannot.

    Args:
      make: builds the dataset; its argument is the folder that `start_worker` is to be given.
      prepare: applied to each element ahead of its use, in the thread.
      finish: applied to what `prepare` made as it is handed out.
      timeout_s: how long one element may take.

    Raises (from `next`):
      UserError: nothing came for `timeout_s`, or a worker process died. The stream is closed then.
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
        self._ready = queue.Queue(maxsize=1)  # grain keeps more
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
        """Whether `next` would return at once."""
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
        error = self._explain(error)
        self.close(kill=not isinstance(error, StopIteration))
        raise error

    def worker_pids(self) -> list[int]:
        """The process ids of the workers that have started, in their order."""
        return [worker.pid for _, worker in sorted(self._workers.items())]

    def _wait(self) -> tuple:
        deadline = time.monotonic() + self.timeout_s
        while time.monotonic() < deadline:
            try:
                return self._ready.get(timeout=POLL_S)
            except queue.Empty:  # a worker killed while it wrote is not always noticed by grain
                if dead := self._dead_worker():
                    return None, dead
            finally:
                self._note_workers()
        return None, UserError(self._describe_stall())

    def close(self, kill: bool = False) -> None:
        """Ends threads and worker processes; `kill` where they may not listen any more."""
        atexit.unregister(self.close)
        self._closing.set()
        with contextlib.suppress(queue.Empty):
            self._ready.get_nowait()
        self._note_workers()
        if kill:
            self._kill_workers()
        self._thread.join(timeout=1 if kill else 10)  # a hung read is left behind, as a daemon
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
        """Keeps hold of the worker processes that registered, for their exit code."""
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
                who = f'Data worker {index} (process {worker.pid})'
                return UserError(f'{who} {_describe_exit(worker.exitcode)}')
        return None

    def _explain(self, error: BaseException) -> BaseException:
        """A dead worker by name, where that is what grain's error is about."""
        if isinstance(error, RuntimeError) and 'Worker process' in str(error):
            return self._dead_worker() or UserError(f'A data worker died while it started: {error}')
        return error

    def _describe_stall(self) -> str:
        text = f'No batch came from the data loader for {self.timeout_s:g} s'
        stopped = [
            f'data worker {index} (process {worker.pid}) is stopped'
            for index, worker in sorted(self._workers.items())
            if _is_stopped(worker.pid)
        ]
        cause = ', '.join(stopped) or 'a read may hang'
        return f'{text}: {cause}; look at the disk and the machine, or raise dataset.timeout_s.'


def _describe_exit(code: int) -> str:
    if code == -signal.SIGBUS:
        return 'was killed by SIGBUS: /dev/shm may be full; enlarge it or lower dataset.prefetch.'
    if code < 0:
        name = signal.Signals(-code).name
        return f'was killed by {name}; if memory ran out, lower dataset.workers or prefetch.'
    return f'ended with exit status {code}; what it printed above says why.'


def _is_stopped(pid: int) -> bool:
    try:
        state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except OSError:  # no such process, or no Linux
        return False
    return state in 'Tt'
