"""Holds a work directory for one run at a time, and always the same run."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator

from etils import epath
from ml_collections import ConfigDict

from mae_jax.checkpoints.find import steps
from mae_jax.config.changes import changed_fields, may_change
from mae_jax.config.saved import load_config, to_json
from mae_jax.errors import UserError
from mae_jax.files.buckets import as_path, service_errors, write_whole
from mae_jax.files.limits import reason
from mae_jax.files.lock import claim
from mae_jax.runtime.agreement import SHARED_WITHIN_S
from mae_jax.runtime.processes import on_first

LENGTH = {'num_epochs', 'num_steps'}
"""Fields that make a run longer."""


@contextlib.contextmanager
def hold(workdir: str | os.PathLike, config: ConfigDict) -> Iterator[list[str]]:
    """Holds the directory for this run, and keeps the run's config in it.

    Process 0 does it for all, since each other would see the directory held. An evaluation of a run
    that has begun leaves its config as it is.

    Yields:
      One line for each field that differs from the last start, where it may (`config/changes.py`).

    Raises:
      UserError: another process holds the directory, it belongs to another run, or cannot be
        written.
    """
    with contextlib.ExitStack() as stack:

        def enter() -> list[str]:
            stack.enter_context(claim(workdir))
            begun = has_begun(workdir)
            changes = check_config(workdir, config) if begun else []
            if not begun or config.mode != 'eval':
                write_config(workdir, config)
            return changes

        changes = on_first(enter)
        check_shared(workdir)
        yield changes or []


def has_begun(workdir: str | os.PathLike) -> bool:
    """Returns whether a checkpoint is there; until then a start may be changed and repeated."""
    directory = as_path(workdir)
    return (directory / 'config.json').exists() and bool(steps(directory / 'checkpoints'))


def check_config(workdir: str | os.PathLike, config: ConfigDict) -> list[str]:
    """Compares a config with that of the directory's last start.

    Returns:
      One line for each field that differs, where it may (`config/changes.py`).

    Raises:
      UserError: a field differs that makes another run; or config.json cannot be read.
    """
    changes = changed_fields(load_config(workdir), config)
    refused = {field: line for field, line in changes.items() if not may_change(field)}
    if refused:
        # The learning rate of every step depends on the length, which a longer run cannot change.
        longer = (
            f' To train longer, start a new run from its weights, with a schedule of its own: '
            f'another --workdir and --config.init_from={workdir}'
        )
        raise UserError(
            f'{workdir} belongs to another run ({"; ".join(refused.values())}): choose another '
            '--workdir, or give the fields their old values.'
            + (longer if refused.keys() & LENGTH else '')
        )
    return list(changes.values())


def write_config(workdir: str | os.PathLike, config: ConfigDict) -> None:
    """Writes config.json, in one go: a reader sees the old one or the new one.

    Raises:
      UserError: it cannot be written.
    """
    path = as_path(workdir) / 'config.json'
    with explained(path):
        write_whole(path, to_json(config))


@contextlib.contextmanager
def explained(path: epath.Path) -> Iterator[None]:
    """Raises a UserError that names the file where what is inside cannot write it."""
    try:
        with service_errors(path):
            yield
    except OSError as error:
        raise UserError(
            f'{path} cannot be written ({reason(error)}): make room or make it writable.'
        ) from error


def check_shared(workdir: str | os.PathLike) -> None:
    """Raises a UserError if this process cannot see the config.json that process 0 wrote."""
    path = as_path(workdir) / 'config.json'
    deadline = time.monotonic() + SHARED_WITHIN_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f'{path} was written by process 0 and is not seen on {socket.gethostname()}: give '
                'a --workdir on storage that all machines of the run share.'
            )
        time.sleep(1)
