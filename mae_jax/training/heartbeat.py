"""Speaks up in a run that has been silent for a while, whatever its intervals."""

import contextlib
import threading
from collections.abc import Callable, Iterator

FIRST_S = 30.0
LONGEST_S = 600.0


@contextlib.contextmanager
def heartbeat(
    speak: Callable[[], None], first_s: float = FIRST_S, longest_s: float = LONGEST_S
) -> Iterator[Callable[[], None]]:
    """Yields a function to call when something was printed; calls `speak` after a long silence.

    The silence allowed is `first_s` seconds, and doubles whenever it was broken, up to `longest_s`:
    a run that logs rarely is not interrupted for ever. `speak` is called from another thread.
    """
    printed, done = threading.Event(), threading.Event()

    def watch() -> None:
        silence = first_s
        while True:
            if printed.wait(silence):
                printed.clear()
            else:
                speak()
                silence = min(2 * silence, longest_s)
            if done.is_set():
                return

    thread = threading.Thread(target=watch, name='mae_jax-heartbeat', daemon=True)
    thread.start()
    try:
        yield printed.set
    finally:
        done.set()
        printed.set()
        thread.join()
