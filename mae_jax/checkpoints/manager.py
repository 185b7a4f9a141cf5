"""Checkpoints: written in the background, whole or not there at all, verified before use.

Orbax is known here and in `weights.py` alone. A checkpoint is a directory named by its step:

    <step>/state/...         the arrays, as Orbax stores them
    <step>/meta/metadata     JSON: what the run wants to remember beside them
    <step>/checksums.txt     its own CRC-32, and below it JSON: size and CRC-32 of each file above

Orbax writes into a directory of another name and renames it when every process has written; the
checksums go in just before the rename. So a kill at any moment leaves either a whole checkpoint
or a leftover that the next start removes, and an older checkpoint is deleted only after the
rename. Orbax does not notice a flipped bit in what it reads, the checksums do.
"""

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from mae_jax.checkpoints.find import Log, find_whole, read_meta, steps
from mae_jax.checkpoints.integrity import CHECKSUMS, write_checksums
from mae_jax.errors import Preempted, UserError, brief
from mae_jax.files.paths import absolute
from mae_jax.runtime.processes import is_lost

PyTree = Any
_warn = logging.getLogger(__name__).warning


class Checkpoints:
    """The checkpoints of one run, in one directory (local or `gs://`). A context manager.

    Every process of a run makes one and calls the same methods. One run at a time may use a
    directory: `workdir.claim` sees to that.
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
        """Makes the directory, and removes what a killed run left unfinished in it.

        Args:
          directory: holds one directory per step.
          keep_last: how many of the newest checkpoints to keep, at least 1.
          keep_every_steps: besides, keep those at multiples of this for good.
          score: besides, keep the one with the highest `meta[score]`, the newest of equals.
          log: is told about damaged checkpoints.

        Raises:
          UserError: the directory cannot be made, or `keep_last` is less than 1.
        """
        if keep_last < 1:
            raise UserError(f'keep_last={keep_last} would keep no checkpoint: use 1 or more.')
        self._directory = absolute(directory)
        self._log = log
        self._saving = None  # the step that is being written
        self._damaged: list[int] = []  # newer than the one restored: to be replaced
        policies = ocp.checkpoint_managers
        keep = [policies.LatestN(keep_last)]
        if keep_every_steps:
            keep.append(policies.EveryNSteps(keep_every_steps))
        self._score = score
        self._scores: dict[int, float] = {}
        if score:
            self._scores = self._read_scores()
            keep.append(_Best(self._scores))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(keep),
            cleanup_tmp_directories=True,
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=self._seal,
                # In the background, a directory that cannot be made leaves threads that wait for
                # it, and keep the process from ending, for twenty minutes.
                create_directories_asynchronously=False,
            ),
        )
        try:
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        except OSError as error:
            raise UserError(
                f'Checkpoints cannot be kept in {self._directory} ({brief(error)}): make it '
                'writable or choose another --workdir.'
            ) from error

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if error is not None and is_lost(error):
            return  # what is being written cannot be finished without the other process
        try:
            self.close()
        except UserError as failed:
            if error is None or isinstance(error, Preempted):  # which says that it was saved
                raise
            self._log(str(failed))  # the error that came first is the one to raise

    def save(self, step: int, state: PyTree, meta: dict) -> None:
        """Starts writing a checkpoint, and returns once the arrays are copied off the devices.

        Does nothing where a checkpoint of that step exists.

        Args:
          step: names the checkpoint.
          state: a pytree of arrays, sharded or not.
          meta: whatever JSON can hold.

        Raises:
          UserError: this or the previous checkpoint could not be written.
        """
        self.wait()
        with self._explained(step):
            for damaged in self._damaged:
                self._manager.delete(damaged)
            self._damaged = []
            if step in self._manager.all_steps():
                return
            self._saving = step
            if meta.get(self._score) is not None:
                self._scores[step] = meta[self._score]
            items = ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            )
            self._manager.save(step, args=items, force=True)

    def wait(self) -> None:
        """Waits until the last checkpoint is whole on disk, and older ones are cleared away.

        Raises:
          UserError: it could not be written.
        """
        with self._explained(self._saving):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits as `wait` does, and ends the background threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def steps(self) -> list[int]:
        """The steps on disk that look whole (their files are not read), oldest first."""
        return [s for s in steps(self._directory) if (self._path(s) / CHECKSUMS).exists()]

    def read_meta(self, step: int | None = None) -> dict | None:
        """The `meta` of a step, or of the newest whole one. None if there is no checkpoint."""
        step = self._find(step)
        return None if step is None else read_meta(self._path(step))

    def beats_best(self, score: float | None) -> bool:
        """Whether a checkpoint of this score would be the best."""
        return score is not None and score > max(self._scores.values(), default=-math.inf)

    def best(self) -> tuple[int, float] | None:
        """(step, score) of the best checkpoint on disk; None where none has a score."""
        scores = {step: self._scores[step] for step in self.steps() if step in self._scores}
        return max(scores.items(), key=_rank) if scores else None

    def restore(self, target: PyTree, step: int | None = None) -> tuple[PyTree, int, dict] | None:
        """Restores the newest whole checkpoint, passing over damaged ones with a warning.

        Args:
          target: the state's pytree with `jax.ShapeDtypeStruct`s (or arrays) for leaves; their
            shardings say where the restored arrays go, whatever mesh they were saved from.
          step: restore this one and no other.

        Returns:
          (state, step, meta), or None if there is no checkpoint.

        Raises:
          UserError: there are checkpoints but none is whole, or not the one that was asked for,
            or the state in it has other shapes than the target.
        """
        found = self._find(step)
        if found is None:
            return None
        if step is None:
            self._damaged = [s for s in self._manager.all_steps() if s > found]
            for damaged in self._damaged:
                self._scores.pop(damaged, None)
        path = self._path(found)
        try:
            with ocp.StandardCheckpointer() as checkpointer:
                state = checkpointer.restore(path / 'state', target)
        except ValueError as error:
            raise UserError(
                f'The checkpoint {path} does not fit this model ({brief(error)}): use the '
                'config it was trained with, or another --workdir.'
            ) from error
        except Exception as error:  # its files are as they were written, and are no checkpoint
            raise UserError(
                f'The checkpoint {path} cannot be restored ({brief(error)}): remove it to go on '
                'from an earlier one, or choose another --workdir.'
            ) from error
        return state, found, read_meta(path)

    def _path(self, step: int) -> epath.Path:
        return self._directory / str(step)

    def _read_scores(self) -> dict[int, float]:
        scores = {}
        for step in self.steps():
            with contextlib.suppress(UserError, KeyError):  # damaged, or has no score
                scores[step] = read_meta(self._path(step))[self._score]
        return scores

    def _find(self, step: int | None) -> int | None:
        self.wait()
        return find_whole(self._directory, step, log=self._log)

    def _seal(self) -> None:
        """Adds the checksums. Orbax calls it on process 0, when all have written."""
        unfinished = list(self._directory.glob(f'{self._saving}.orbax-checkpoint-tmp*'))
        write_checksums(unfinished[0] if unfinished else self._path(self._saving))

    @contextlib.contextmanager
    def _explained(self, step: int | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the system, TensorStore and Orbax each raise their own
            if is_lost(error):
                raise
            raise UserError(
                f'The checkpoint of step {step} could not be written to {self._directory} '
                f'({brief(error)}): make room or make it writable, then run the same command '
                'again. Earlier checkpoints are intact.'
            ) from error


@dataclasses.dataclass
class _Best(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the step with the highest score."""

    scores: dict[int, float]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        there = {c.step: self.scores[c.step] for c in checkpoints if c.step in self.scores}
        best = max(there.items(), key=_rank)[0] if there else None
        return [checkpoint.step == best for checkpoint in checkpoints]


def _rank(scored: tuple[int, float]) -> tuple[float, int]:
    """Highest score first, the newest of equals."""
    return scored[1], scored[0]
