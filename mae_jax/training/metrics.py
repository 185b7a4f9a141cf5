"""Writes the metrics and pictures of a run: console, metrics.jsonl, images/, loggers."""

import contextlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

import numpy as np
from clu import asynclib
from etils import epath
from PIL import Image
from tqdm import tqdm

from mae_jax.errors import UserError
from mae_jax.files.buckets import write_whole
from mae_jax.training.console import format_line
from mae_jax.training.heartbeat import heartbeat
from mae_jax.training.loggers import EXTRAS, Loggers

CONTINUED = ('metrics.jsonl', *(f'{service}/run_id' for service in EXTRAS))
"""Files of a work directory that a run which is resumed goes on with."""


class MetricsWriter:
    """Writes scalars and pictures of a run to a local folder, the console and its loggers.

    Lines of metrics.jsonl of steps after `start_step`, from an earlier start, are removed, so that
    every step is there once. One process of a run is the writer; the others write nothing.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        start_step: int,
        total_steps: int,
        steps_per_epoch: float,
        loggers: Sequence[str] = ('tensorboard',),
        config: Any = None,
        is_writer: bool = True,
        console: TextIO | None = None,
    ):
        """Opens the files.

        Args:
          workdir: of the run, or the folder that `files.mirror` copies to it.
          start_step: the step from which the run goes on.
          total_steps, steps_per_epoch: for the console.
          loggers: names of `training.loggers`.
          config: of the run, for the loggers.
          is_writer: whether this process writes.
          console: where lines go; by default standard output.

        Raises:
          UserError: they cannot be written.
        """
        self._workdir = epath.Path(workdir)
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._is_writer = is_writer
        self._console = console or sys.stdout
        self._bar = None
        self._latest: tuple[int, dict[str, float]] | None = None
        self._described: int | None = None  # the step of the last line
        self._silence = contextlib.ExitStack()
        self._printed = lambda: None
        if not is_writer:
            return
        self._loggers = Loggers(loggers, self._workdir, start_step, config, self.say)
        with self._explained():
            self._workdir.mkdir(parents=True, exist_ok=True)
            path = self._workdir / 'metrics.jsonl'
            cut_back(path, start_step)
            self._lines = path.open('a')
        self._pool = asynclib.Pool('mae_jax-pictures', max_workers=1)
        self._write_picture = self._pool(self._write_picture)
        self._failed: OSError | None = None  # of a picture that could not be written
        if self._console.isatty():
            self._bar = tqdm(
                total=total_steps, initial=start_step, unit='step', file=self._console, leave=False
            )
        self._printed = self._silence.enter_context(heartbeat(self._break_silence))

    def __enter__(self) -> 'MetricsWriter':
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def progress(self, step: int, scalars: Mapping[str, float] = {}) -> None:
        """Moves the progress bar, where the console is a terminal; remembers the step's metrics."""
        self._latest = step, dict(scalars)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def scalars(self, step: int, scalars: dict[str, float]) -> None:
        """Writes one line of metrics.jsonl and of the console, and logs the scalars."""
        if not self._is_writer:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        with self._explained():
            self._lines.write(json.dumps({'step': step} | finite) + '\n')
            self._lines.flush()
        self._loggers.scalars(step, scalars)
        self._described = step
        self.say(self._line(step, scalars))

    def _line(self, step: int, scalars: dict[str, float]) -> str:
        columns = shutil.get_terminal_size().columns if self._console.isatty() else 0
        epoch = step / self._steps_per_epoch
        return format_line(step, self._total_steps, epoch, scalars, width=max(columns, 80))

    def _break_silence(self) -> None:
        """Prints the last finished step where nothing was printed for a while."""
        if self._latest is None:
            self.say('still compiling, or in the first step')
        elif self._latest[0] == self._described:
            self.say(f'still at work after step {self._latest[0]}')
        else:
            self._described = self._latest[0]
            self.say(self._line(*self._latest))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Logs a picture, uint8 [H, W, 3], and writes it to images/ in the background."""
        if not self._is_writer:
            return
        self._write_picture(step, image)
        self._loggers.image(step, name, image)

    def _write_picture(self, step: int, image: np.ndarray) -> None:
        """Writes images/step_<step>.png and images/latest.png."""
        folder = self._workdir / 'images'
        path = folder / f'step_{step:08d}.png'
        fresh = folder / '.latest.png'  # a viewer never sees half a picture
        try:
            folder.mkdir(exist_ok=True)
            with path.open('wb') as file:
                Image.fromarray(image).save(file, format='PNG')
            path.copy(fresh, overwrite=True)
            fresh.replace(folder / 'latest.png')
        except OSError as error:
            self._failed = error

    def flush(self) -> None:
        """Waits until all pictures are written.

        Raises:
          UserError: one could not be written.
        """
        if not self._is_writer:
            return
        self._pool.join()
        with self._explained():
            if self._failed:
                raise self._failed

    def say(self, line: str) -> None:
        """Prints a line on the console, above the progress bar where there is one."""
        if self._is_writer:
            if self._bar is not None:
                self._bar.write(line, file=self._console)
            else:
                print(line, file=self._console, flush=True)
            self._printed()

    def close(self) -> None:
        """Finishes all writing, and closes the files.

        Raises:
          UserError: something could not be written.
        """
        self._silence.close()
        if self._bar is not None:
            self._bar.close()
        if self._is_writer:
            self._loggers.close()
            with self._explained():
                self._lines.close()
            self.flush()
            self._pool.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f'metrics cannot be written to {self._workdir} ({error.strerror or error}): make '
                'room or make it writable, then run the same command again.'
            ) from error


def cut_back(path: epath.Path, step: int) -> None:
    """Removes the lines of metrics.jsonl of later steps, and those that a kill cut short."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)['step'] <= step:
                kept.append(line + '\n')
    write_whole(path, ''.join(kept))
