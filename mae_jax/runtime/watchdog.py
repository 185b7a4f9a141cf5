"""Ends a process that hangs, so that a scheduler can start the run again."""

import contextlib
import faulthandler
import os
import sys
import threading
from collections.abc import Callable, Iterator

import jax

from mae_jax.errors import EXIT_LOST


@contextlib.contextmanager
def watchdog(timeout_s: float) -> Iterator[Callable[[], None]]:
    """Yields a function; if it is not called for `timeout_s` seconds, the process ends.

    The exit status is EXIT_LOST. A collective that another process never joins, or a device that
    hangs, cannot be interrupted from Python, hence the end of the process. The other processes of
    the run then lose it, and end too.
    """
    alive, done = threading.Event(), threading.Event()

    def watch() -> None:
        while alive.wait(min(timeout_s, threading.TIMEOUT_MAX)):
            alive.clear()
            if done.is_set():
                return
        try:
            report()
        finally:
            os._exit(EXIT_LOST)

    def report() -> None:
        print(
            f'process {jax.process_index()} of {jax.process_count()}: nothing happened for '
            f'{timeout_s:g} s (config.step_timeout_s): a device or another process hangs. Saved '
            'steps are intact: run the same command to go on. Where it waits:',
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)

    threading.Thread(target=watch, name='mae_jax-watchdog', daemon=True).start()
    try:
        yield alive.set
    finally:
        done.set()
        alive.set()
