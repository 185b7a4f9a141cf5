"""Locks a directory, so that two processes do not write to it at the same time."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from mae_jax.errors import UserError
from mae_jax.files.buckets import as_path, is_remote, make_directory
from mae_jax.files.lease import lease
from mae_jax.files.limits import reason

try:
    import fcntl
except ImportError:  # not a POSIX system: no locks
    fcntl = None


@contextlib.contextmanager
def claim(workdir: str | os.PathLike) -> Iterator[None]:
    """Creates a directory and locks it; the lock ends with the process at the latest.

    Continues without a lock where the file system has none. In a bucket, `lease.py` stands for it.

    Raises:
      UserError: another process has locked the directory, or it cannot be created.
    """
    directory = as_path(workdir)
    with contextlib.ExitStack() as stack:
        try:
            make_directory(directory)
            if is_remote(directory):
                stack.enter_context(lease(directory / '.lock'))
            elif fcntl is not None:
                # Opened to append: it contains the process number of the owner, if there is one.
                file = stack.enter_context(open(directory / '.lock', 'a+'))
                _lock(file, directory)
        except OSError as error:
            raise UserError(
                f'{directory} cannot be written ({reason(error)}): choose another directory, or '
                'make it writable.'
            ) from error
        yield


def _lock(file: Any, directory: epath.Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or 'unknown'
        raise UserError(
            f'{directory} is held by another process ({holder}): wait for it, stop it, or choose '
            'another directory.'
        ) from error
    except OSError:
        return  # no locks on this file system
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
