"""Writes arrays by Orbax, and has every process list the checksums of its own files."""

import functools
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mae_jax.checkpoints.integrity import find_unseen_files, write_own_checksums


class ArraysHandler(ocp.handlers.StandardCheckpointHandler):
    """Writes arrays; a process has finished when the checksums of what it wrote are on disk too."""

    @classmethod
    def typestr(cls) -> str:
        """Returns the name of the handler that reads them, which the checkpoint records."""
        return ocp.handlers.StandardCheckpointHandler.typestr()

    async def async_save(self, directory: epath.Path, *args: Any, **options: Any) -> list[Any]:
        """Starts writing, and returns what to wait for in the background."""
        writes = await super().async_save(directory, *args, **options)
        listed = functools.partial(write_own_checksums, directory, jax.process_index())
        return [ocp.future.ChainedFuture(writes or [], listed)]

    def finalize(self, directory: epath.Path) -> None:
        """Joins what the processes have written; Orbax calls it on process 0, after all of them.

        Raises:
          OSError: a file that another process has written is not seen here. Without the check, the
            arrays in it would be missing from the checkpoint.
        """
        if unseen := find_unseen_files(directory, jax.process_count()):
            raise OSError(f'{unseen} was written by another process and is not seen by process 0')
        super().finalize(directory)
