"""Saves and restores the checkpoints of a run: atomic, in the background, with checksums.

A checkpoint is a directory named by its step:

    <step>/state/...         the arrays, as Orbax stores them
    <step>/meta/metadata     JSON: the run's metadata
    <step>/checksums.txt     its own CRC-32, and below it JSON: size and CRC-32 of each file above

Orbax writes to a directory of another name and renames it after every process has written and
listed the checksums of its own files; the lists are joined just before the rename. So a kill at
any moment leaves either a complete checkpoint or a temporary directory that the next start removes,
and an older checkpoint is deleted only after the rename. Orbax does not detect a flipped bit in the
files it reads; the checksums do.
"""

import contextlib
import logging
import math
import os
import socket
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from mae_jax.checkpoints.best import Best, rank
from mae_jax.checkpoints.find import Log, find_newest_intact, read_meta, steps
from mae_jax.checkpoints.integrity import CHECKSUMS, write_checksums
from mae_jax.checkpoints.restore import restore_arrays
from mae_jax.checkpoints.write import ArraysHandler
from mae_jax.errors import Preempted, UserError, brief
from mae_jax.files.buckets import service_errors, service_problem
from mae_jax.files.paths import absolute
from mae_jax.runtime.agreement import SHARE_STORAGE, find_unseen, from_first, gather
from mae_jax.runtime.failures import is_lost

PyTree = Any
_warn = logging.getLogger(__name__).warning


class Checkpoints:
    """Context manager of the checkpoints of one run, in a directory (local or `gs://`).

    Every process of a run makes one and calls the same methods. Only one run may use a directory at
    a time, which `files.lock.claim` ensures.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        keep_last: int = 3,
        keep_every_steps: int | None = None,
        score: str | None = None,
        log: Log = _warn,
    ):
        """Creates the directory, and removes incomplete checkpoints of a killed run from it.

        Args:
          directory: holds one directory for each step.
          keep_last: number of newest checkpoints to keep, at least 1.
          keep_every_steps: additionally keep all checkpoints at multiples of this.
          score: additionally keep the one with the highest `meta[score]`, the newest of equals.
          log: called with a message for each damaged checkpoint.

        Raises:
          UserError: the directory cannot be created, or `keep_last` is less than 1.
        """
        if keep_last < 1:
            raise UserError(f'keep_last={keep_last} would keep no checkpoint: use 1 or more.')
        self._directory = absolute(directory)
        self._log = log
        self._saving = None  # the step that is being written
        self._damaged: list[int] = []  # newer than the restored one: to be replaced
        self._score = score
        self._create()
        self._scores = dict(from_first(self._read_scores)) if score else {}
        policies = ocp.checkpoint_managers
        keep = [policies.LatestN(keep_last)]
        if keep_every_steps:
            keep.append(policies.EveryNSteps(keep_every_steps))
        if score:
            keep.append(Best(self._scores))
        self._manager = self._make_manager(policies.AnyPreservationPolicy(keep))

    def _create(self) -> None:
        """Creates the directory in process 0, and waits until every process sees what is in it."""

        def create() -> list[int]:
            with self._unwritable(), service_errors(self._directory):
                self._directory.mkdir(parents=True, exist_ok=True)
            return steps(self._directory)

        paths = [self._directory, *map(self._path, from_first(create))]
        unseen = find_unseen(dict.fromkeys(paths))
        unseen = unseen and f'process {jax.process_index()} on {socket.gethostname()}: {unseen}'
        if unseen := next((each for each in gather(unseen) if each), None):
            raise UserError(f'What process 0 sees is not seen by {unseen}. {SHARE_STORAGE}')

    @contextlib.contextmanager
    def _unwritable(self) -> Iterator[None]:
        """Raises an OSError in the block as a UserError."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f'Checkpoints cannot be kept in {self._directory} ({brief(error)}): make it '
                'writable or choose another --workdir.'
            ) from error

    def _make_manager(self, policy: Any) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            cleanup_tmp_directories=True,
            single_host_load_and_broadcast=True,  # all know the steps that process 0 sees
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=self._add_checksums,
                # In the background, a directory that cannot be created leaves threads that wait
                # for it for twenty minutes, and the process cannot end before.
                create_directories_asynchronously=False,
            ),
        )
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        registry.add('state', ocp.args.StandardSave, ArraysHandler())
        with self._unwritable(), service_errors(self._directory):
            return ocp.CheckpointManager(
                self._directory, options=options, handler_registry=registry
            )

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is not None and is_lost(error):
            return  # a checkpoint cannot be completed without the other process
        try:
            self.close()
        except UserError as failed:
            if error is None or isinstance(error, Preempted):  # which claims that it was saved
                raise
            if str(failed) != str(error):
                self._log(str(failed))  # the error of the block is raised

    def save(self, step: int, state: PyTree, meta: dict) -> None:
        """Starts writing a checkpoint; returns when the arrays are copied from the devices.

        Does nothing if there is a checkpoint of that step already.

        Args:
          step: the number of the step, and name of the checkpoint.
          state: a pytree of arrays, sharded or not.
          meta: a dict that JSON can represent; that of process 0 is saved.

        Raises:
          UserError: this or the previous checkpoint could not be written.
        """
        self.wait()
        with self._write_errors(step):
            for damaged in self._damaged:
                self._manager.delete(damaged)
            self._damaged = []
            if step in self._manager.all_steps():
                return
            self._saving = step
            meta = from_first(lambda: meta)
            if meta.get(self._score) is not None:
                self._scores[step] = meta[self._score]
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            )
            self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Waits until the last checkpoint is complete on disk and older ones are deleted.

        Raises:
          UserError: it could not be written.
        """
        with self._write_errors(self._saving):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Calls `wait`, and ends the background threads.

        Raises:
          UserError: the last checkpoint could not be written.
        """
        with self._write_errors(self._saving):
            try:
                self._manager.wait_until_finished()
            finally:
                self._manager.close()  # raises what else failed: each file is written by itself

    def steps(self) -> list[int]:
        """Lists the steps of complete checkpoints, oldest first; does not verify their files."""
        return [s for s in steps(self._directory) if (self._path(s) / CHECKSUMS).exists()]

    def read_meta(self, step: int | None = None) -> dict | None:
        """Reads the `meta` of a step, or of the newest intact one; None without a checkpoint."""
        self.wait()
        step = self._find(None) if step is None else step
        return None if step is None else from_first(lambda: read_meta(self._path(step)))

    def is_best(self, score: float | None) -> bool:
        """Returns whether a score, that of process 0, is higher than those of all checkpoints."""
        highest = max(self._scores.values(), default=-math.inf)
        return score is not None and from_first(lambda: bool(score > highest))

    def best(self) -> tuple[int, float] | None:
        """Returns (step, score) of the best checkpoint on disk; None if none has a score."""
        on_disk = from_first(self.steps)
        scores = {step: self._scores[step] for step in on_disk if step in self._scores}
        return max(scores.items(), key=rank) if scores else None

    def restore(self, target: PyTree, step: int | None = None) -> tuple[PyTree, int, dict] | None:
        """Restores the newest intact checkpoint; skips damaged ones with a warning.

        Args:
          target: the state's pytree with `jax.ShapeDtypeStruct`s (or arrays) for leaves. Restored
            arrays get their shardings, whatever mesh they were saved from.
          step: restore this step only.

        Returns:
          (state, step, meta), or None if there is no checkpoint.

        Raises:
          UserError: all checkpoints, or the requested one, are damaged, or the state has other
            shapes than the target.
        """
        newest = self._find(step)
        if newest is None:
            return None
        if step is None:
            self._damaged = [s for s in self._manager.all_steps() if s > newest]
            for damaged in self._damaged:
                self._scores.pop(damaged, None)
        path = self._path(newest)
        state = restore_arrays(path / 'state', target)
        return state, newest, from_first(lambda: read_meta(path))

    def _path(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _read_scores(self) -> list[tuple[int, float]]:
        scores = {}
        for step in self.steps():
            with contextlib.suppress(UserError, KeyError):  # damaged, or has no score
                scores[step] = read_meta(self._path(step))[self._score]
        return list(scores.items())

    def _find(self, step: int | None) -> int | None:
        self.wait()
        return find_newest_intact(self._directory, step, log=self._log)

    def _add_checksums(self) -> None:
        """Writes the checksums. Orbax calls it on process 0, after all processes have written."""
        temporary = list(self._directory.glob(f'{self._saving}.orbax-checkpoint-tmp*'))
        write_checksums(temporary[0] if temporary else self._path(self._saving))

    @contextlib.contextmanager
    def _write_errors(self, step: int | None) -> Iterator[None]:
        """Raises any error in the block as a UserError that the step could not be written."""
        try:
            yield
        except Exception as error:  # the system, TensorStore and Orbax each raise their own
            if is_lost(error):
                raise
            if problem := service_problem(error, self._directory):
                raise problem from error
            if isinstance(error, jax.errors.JaxRuntimeError):
                raise  # it is not about files
            raise UserError(
                f'The checkpoint of step {step} could not be written to {self._directory} '
                f'({brief(error)}): make room or make it writable, then run the same command '
                'again. Earlier checkpoints are intact.'
            ) from error
