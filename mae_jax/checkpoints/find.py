"""Finds checkpoints in a directory, and the newest intact one."""

import os
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from mae_jax.checkpoints.integrity import find_damage
from mae_jax.errors import UserError
from mae_jax.files.limits import read_json, reason
from mae_jax.files.paths import absolute

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
        'of weights.'
    )


def is_checkpoint(path: epath.Path) -> bool:
    """Returns whether a path is that of one checkpoint in a work directory."""
    return path.name.isdecimal() and path.parent.name == 'checkpoints' and path.exists()


def steps(directory: str | os.PathLike) -> list[int]:
    """Lists the steps in a directory of checkpoints, intact or damaged, oldest first."""
    directory = absolute(directory)
    if not directory.exists():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def find_newest_intact(directory: epath.Path, step: int | None = None, *, log: Log) -> int | None:
    """Returns the newest step whose files are all as written, or None if there are no checkpoints.

    Process 0 reads the files and sends the result to the others: every process must call it.

    Args:
      directory: holds one directory for each step.
      step: consider this step only.
      log: called with a message for each damaged step that is skipped.

    Raises:
      UserError: there are checkpoints, and all are damaged.
    """
    candidates = steps(directory) if step is None else [step]
    newest = -1
    if jax.process_index() == 0:
        for candidate in reversed(candidates):
            problem = find_damage(directory / str(candidate))
            if problem is None:
                newest = candidate
                break
            log(f'The checkpoint of step {candidate} in {directory} is damaged: {problem}.')
        if 0 <= newest < candidates[-1]:
            log(f'Going on from step {newest}, the newest intact checkpoint.')
    if jax.process_count() > 1:
        newest = int(multihost_utils.broadcast_one_to_all(np.int64(newest)))
    if newest >= 0:
        return newest
    if not candidates:
        return None
    raise UserError(
        f'No checkpoint in {directory} is intact (tried step {", ".join(map(str, candidates))}): '
        'restore the directory from a copy, or start again in another --workdir.'
    )


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
