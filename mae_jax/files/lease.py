"""Holds a directory in a bucket for one process, by an object that the process keeps renewing.

Buckets have no locks that end with a process. An object that has not changed for a while belongs to
a process that was killed.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

from etils import epath

from mae_jax.errors import EXIT_USER_ERROR, UserError
from mae_jax.files.buckets import service_errors

RENEW_S = 10.0
EXPIRES_S = 45.0
"""Seconds without a renewal after which a process of another machine counts as killed."""


@contextlib.contextmanager
def lease(path: epath.Path) -> Iterator[None]:
    """Holds `path`, an object in a bucket; a process that loses it ends.

    Raises:
      UserError: another process holds it, or the service refuses or is away.
    """
    owner = f'{socket.gethostname()} {os.getpid()} {time.time():.6f}'
    with service_errors(path):
        _wait_for_end(path, _read(path))
        path.write_text(owner)
    ended = threading.Event()

    def renew() -> None:
        count = 0
        while not ended.wait(RENEW_S):
            count += 1
            with contextlib.suppress(Exception):  # the service is away: it is tried again
                holder = _read(path)
                if holder and not holder.startswith(owner) and not ended.is_set():
                    _end(path, holder)
                path.write_text(f'{owner} {count}')

    thread = threading.Thread(target=renew, name='mae_jax-lease', daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with contextlib.suppress(Exception):  # it expires
            if _read(path).startswith(owner):
                path.unlink()


def _wait_for_end(path: epath.Path, holder: str) -> None:
    """Returns once the process that is named in `path` has ended; raises if it renews the lease."""
    if not holder or _has_ended(holder):
        return
    print(f'{path} was left by {_named(holder)}: waiting whether it is at work', flush=True)
    deadline = time.monotonic() + EXPIRES_S
    while time.monotonic() < deadline:
        time.sleep(1)
        now = _read(path)
        if not now:
            return
        if now != holder:
            raise UserError(
                f'{path.parent} is held by another process ({_named(now)}): wait for it, stop it, '
                'or choose another directory.'
            )


def _has_ended(holder: str) -> bool:
    """Returns whether a holder is known to have ended, for it was a process of this machine."""
    host, process, *_ = f'{holder} ? ?'.split()
    if host != socket.gethostname() or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return int(process) == os.getpid()


def _read(path: epath.Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ''


def _named(holder: str) -> str:
    host, process, *_ = f'{holder} ? ?'.split()
    return f'process {process} on {host}'


def _end(path: epath.Path, holder: str) -> None:
    print(
        f'error: {path.parent} was taken over by {_named(holder)}: this process stops.',
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_USER_ERROR)  # a regular exit would save, into the directory of the other
