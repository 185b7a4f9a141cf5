"""Finds checkpoints in a directory, and the newest intact one."""

import os
from collections.abc import Callable

import jax
from etils import epath

from mae_jax.checkpoints.integrity import CHECKSUMS, find_damage
from mae_jax.errors import UserError
from mae_jax.files.buckets import is_remote
from mae_jax.files.limits import read_json, reason
from mae_jax.files.paths import absolute, similar_path
from mae_jax.runtime.agreement import from_first

Log = Callable[[str], None]


def locate(path: str | os.PathLike) -> tuple[epath.Path, int | None]:
    """Splits the path of a work directory or of one of its checkpoints.

    Returns:
      (directory of the checkpoints, step); the step is None for a work directory.

    Raises:
      UserError: the path is neither.
    """
    path = absolute(path)
    if is_checkpoint(path):
        return path.parent, int(path.name)
    if (path / 'checkpoints').exists():
        return path / 'checkpoints', None
    raise UserError(
        f'{path} is neither a work directory nor one of its checkpoints, nor a file or directory '
        f'of weights{similar_path(path) or "."}'
    )


def is_checkpoint(path: epath.Path) -> bool:
    """Returns whether a path is that of one checkpoint in a work directory."""
    return path.name.isdecimal() and path.parent.name == 'checkpoints' and path.exists()


def steps(directory: str | os.PathLike) -> list[int]:
    """Lists the steps in a directory of checkpoints, intact or damaged, oldest first.

    Buckets know no renaming: what a kill left of a save has the name of a checkpoint there, but no
    checksums, which are written last. It is no checkpoint.
    """
    directory = absolute(directory)
    if not directory.exists():
        return []
    paths = [path for path in directory.iterdir() if path.name.isdecimal()]
    if is_remote(directory):
        paths = [path for path in paths if (path / CHECKSUMS).exists()]
    return sorted(int(path.name) for path in paths)


def find_newest_intact(directory: epath.Path, step: int | None = None, *, log: Log) -> int | None:
    """Returns the newest step whose files are all as written, or None if there are no checkpoints.

    Every process of a run must call it: process 0 lists the steps, and each reads a share of the
    files. All return the same.

    Args:
      directory: holds one directory for each step.
      step: consider this step only.
      log: called with a message for each damaged step that is skipped.

    Raises:
      UserError: there are checkpoints, and all are damaged; or a process does not see what process
        0 sees.
    """
    candidates = from_first(lambda: steps(directory) if step is None else [step])
    for candidate in reversed(candidates):
        problem = find_damage(directory / str(candidate))
        if problem is None:
            if candidate != candidates[-1]:
                _log_first(log, f'Going on from step {candidate}, the newest intact checkpoint.')
            return candidate
        _log_first(log, f'The checkpoint of step {candidate} in {directory} is damaged: {problem}.')
    if not candidates:
        return None
    raise UserError(
        f'No checkpoint in {directory} is intact (tried step {", ".join(map(str, candidates))}): '
        'restore the directory from a copy, or start again in another --workdir.'
    )


def _log_first(log: Log, message: str) -> None:
    if jax.process_index() == 0:
        log(message)


def read_meta(path: epath.Path) -> dict:
    """Reads the metadata that a run saved with the arrays of the checkpoint in `path`.

    Raises:
      UserError: it cannot be read, or is not a JSON object.
    """
    file = path / 'meta' / 'metadata'
    try:
        meta = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f'{file} cannot be read ({reason(error)}): take another checkpoint.'
        ) from error
    if not isinstance(meta, dict):
        raise UserError(f'{file} was not written by a run: take another checkpoint.')
    return meta
