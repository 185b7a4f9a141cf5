"""Which checkpoints there are, and which of them are as they were written."""

import os
from collections.abc import Callable

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from mae_jax.checkpoints.integrity import damage
from mae_jax.errors import UserError
from mae_jax.files.limits import read_json, reason
from mae_jax.files.paths import absolute

Log = Callable[[str], None]


def locate(path: str | os.PathLike) -> tuple[epath.Path, int | None]:
    """A work directory, or one checkpoint of it -> (directory of its checkpoints, step or None).

    Raises:
      UserError: it is neither.
    """
    path = absolute(path)
    if is_checkpoint(path):
        return path.parent, int(path.name)
    if (path / 'checkpoints').exists():
        return path / 'checkpoints', None
    told = f'{path} is neither a work directory nor one of its checkpoints, nor a file of a model'
    if (path / 'config.json').exists():  # Hugging Face's directories have one too
        told += ': convert it first, with mae-jax convert'
    raise UserError(f'{told}.')


def is_checkpoint(path: epath.Path) -> bool:
    """Whether a path is that of one checkpoint in a work directory."""
    return path.name.isdecimal() and path.parent.name == 'checkpoints' and path.exists()


def steps(directory: str | os.PathLike) -> list[int]:
    """The steps in a directory of checkpoints, whole or not, oldest first."""
    directory = absolute(directory)
    if not directory.exists():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def find_whole(directory: epath.Path, step: int | None = None, *, log: Log) -> int | None:
    """The newest step that is as it was written, or None if there is no step at all.

    Process 0 reads and the others take its word: every process must call it.

    Args:
      directory: of the checkpoints.
      step: look at this one only.
      log: is told which steps were passed over, and for which file.

    Raises:
      UserError: none is whole.
    """
    candidates = steps(directory) if step is None else [step]
    found = -1
    if jax.process_index() == 0:
        for candidate in reversed(candidates):
            problem = damage(directory / str(candidate))
            if problem is None:
                found = candidate
                break
            log(f'The checkpoint of step {candidate} in {directory} is damaged: {problem}.')
        if 0 <= found < candidates[-1]:
            log(f'Going on from step {found}, the newest whole checkpoint.')
    if jax.process_count() > 1:
        found = int(multihost_utils.broadcast_one_to_all(np.int64(found)))
    if found >= 0:
        return found
    if not candidates:
        return None
    raise UserError(
        f'No checkpoint in {directory} is whole (tried step {", ".join(map(str, candidates))}): '
        'restore the directory from a copy, or start again in another --workdir.'
    )


def read_meta(path: epath.Path) -> dict:
    """What a run remembered beside the arrays of the checkpoint in `path`.

    Raises:
      UserError: it is not to be read, or is something else.
    """
    file = path / 'meta' / 'metadata'
    try:
        meta = read_json(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f'{file} cannot be read ({reason(error)}): take another checkpoint.'
        ) from error
    if not isinstance(meta, dict):
        raise UserError(f'{file} is not what a run writes: take another checkpoint.')
    return meta
