"""What a person sees of a run: console, metrics.jsonl, TensorBoard, pictures; speed and ETA."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import TextIO

import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from mae_jax.errors import UserError
from mae_jax.training.console import format_line
from mae_jax.training.tensorboard import Board


class MetricsWriter:
    """Writes scalars and pictures of a run into its work directory, and tells the console.

    What an earlier start of the run wrote beyond `start_step` is taken back, so that every step
    stands once. Only one process of a run should be the writer; the others write nothing.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        start_step: int,
        total_steps: int,
        steps_per_epoch: float,
        is_writer: bool = True,
        console: TextIO | None = None,
    ):
        """Opens the files.

        Raises:
          UserError: they cannot be written.
        """
        self._workdir = epath.Path(workdir)
        self._total_steps = total_steps
        self._steps_per_epoch = steps_per_epoch
        self._is_writer = is_writer
        self._console = console or sys.stdout
        self._bar = None
        if not is_writer:
            return
        with self._explained():
            self._workdir.mkdir(parents=True, exist_ok=True)
            path = self._workdir / 'metrics.jsonl'
            cut_back(path, start_step)
            self._lines = path.open('a')
            self._board = Board(self._workdir / 'tensorboard', start_step)
        if self._console.isatty():
            self._bar = tqdm(
                total=total_steps, initial=start_step, unit='step', file=self._console, leave=False
            )

    def __enter__(self) -> 'MetricsWriter':
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def progress(self, step: int) -> None:
        """Moves the bar, where there is a terminal to show one."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def scalars(self, step: int, scalars: dict[str, float]) -> None:
        """One line of metrics.jsonl and of the console, and TensorBoard's scalars."""
        if not self._is_writer:
            return
        finite = {k: v if math.isfinite(v) else None for k, v in scalars.items()}
        with self._explained():
            self._lines.write(json.dumps({'step': step} | finite) + '\n')
            self._lines.flush()
            self._board.scalars(step, scalars)
        self.say(format_line(step, self._total_steps, step / self._steps_per_epoch, scalars))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """uint8 [H,W,3] -> TensorBoard, images/step_<step>.png and images/latest.png."""
        if not self._is_writer:
            return
        with self._explained():
            folder = self._workdir / 'images'
            folder.mkdir(exist_ok=True)
            path = folder / f'step_{step:08d}.png'
            with path.open('wb') as file:
                Image.fromarray(image).save(file, format='PNG')
            fresh = folder / '.latest.png'  # a viewer never sees half a picture
            path.copy(fresh, overwrite=True)
            fresh.replace(folder / 'latest.png')
            self._board.image(step, name, image)

    def say(self, line: str) -> None:
        """A line on the console, above the bar where there is one."""
        if self._is_writer:
            if self._bar is not None:
                self._bar.write(line, file=self._console)
            else:
                print(line, file=self._console, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._is_writer:
            with self._explained():
                self._board.close()
                self._lines.close()

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
    """Drops the lines of metrics.jsonl that are of a later step, or were cut short by a kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):
            if json.loads(line)['step'] <= step:
                kept.append(line + '\n')
    fresh = path.with_name('.metrics.jsonl')
    fresh.write_text(''.join(kept))
    fresh.replace(path)
