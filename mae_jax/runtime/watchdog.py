"""Ends a run in which nothing happens any more, so that it is started again, not paid for."""

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
    """Ends the process with EXIT_LOST where what it yields is not called for `timeout_s` seconds.

    A collective that another process never joins, or a device that hangs, cannot be interrupted
    from Python: ending the process is all that is left. The others then lose it, and end too.
    """
    alive, done = threading.Event(), threading.Event()

    def watch() -> None:
        while alive.wait(min(timeout_s, threading.TIMEOUT_MAX)):
            alive.clear()
            if done.is_set():
                return
        try:
            tell()
        finally:
            os._exit(EXIT_LOST)

    def tell() -> None:
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
