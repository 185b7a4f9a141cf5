"""What a person sees of a run: console, metrics.jsonl, TensorBoard, pictures; speed and ETA."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import jax
import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from mae_jax.errors import UserError
from mae_jax.training.chips import peak_flops
from mae_jax.training.tensorboard import Board


class Throughput:
    """Steps, seconds and seconds of waiting since the last `take`.

    Args:
      batch_size: images a step, over all devices.
      flops_per_image: forward and backward.
      devices: of the mesh; their kind decides the peak that MFU is a share of.
      total_steps: for the ETA.
      clock: seconds.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        flops_per_image: float,
        devices: Sequence[jax.Device],
        total_steps: int,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._batch_size = batch_size
        self._flops_per_image = flops_per_image
        self._devices = len(devices)
        self._peak = peak_flops(devices[0].device_kind)
        self._total_steps = total_steps
        self._clock = clock
        self._first: tuple[int, float] | None = None  # the first step's end: after compilation
        self._steps, self._waited, self._since = 0, 0.0, clock()

    def step(self, step: int) -> None:
        """Step number `step` is finished; the first one, which compiled, is not counted."""
        if self._first is None:
            self._first = (step, self._clock())
            self._steps, self._waited, self._since = 0, 0.0, self._clock()
        else:
            self._steps += 1

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within it the devices wait for input."""
        start = self._clock()
        yield
        self._waited += self._clock() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Within it nothing is trained: evaluation, pictures, the blocking part of a save."""
        start = self._clock()
        yield
        self._since += self._clock() - start

    def take(self, step: int) -> dict[str, float]:
        """Rates since the last call, by name; nothing where no step was timed."""
        now = self._clock()
        seconds, steps, waited = now - self._since, self._steps, self._waited
        self._steps, self._waited, self._since = 0, 0.0, now
        if not steps or seconds <= 0:
            return {}
        images = steps * self._batch_size / seconds
        rates = {
            'images_per_second': images,
            'images_per_second_per_device': images / self._devices,
            'input_wait': min(waited / seconds, 1.0),
        }
        if self._peak:
            rates['mfu'] = images * self._flops_per_image / (self._devices * self._peak)
        first_step, first_time = self._first
        if step > first_step:  # pauses included: it is the user who waits
            per_step = (now - first_time) / (step - first_step)
            rates['eta_seconds'] = (self._total_steps - step) * per_step
        return rates


def format_line(step: int, total_steps: int, epoch: float, scalars: dict[str, float]) -> str:
    """One console line; what is not among the scalars is left out."""
    parts = [f'step {step:>{len(str(total_steps))}}/{total_steps}', f'epoch {epoch:.1f}']
    shown = {
        'loss': ('loss', '.4f'),
        'eval/loss': ('held-out loss', '.4f'),
        'eval/top1': ('top-1', '.4f'),
        'eval/top5': ('top-5', '.4f'),
        'probe/knn': ('k-NN', '.4f'),
        'probe/linear': ('linear probe', '.4f'),
        'learning_rate': ('lr', '.2e'),
        'grad_norm': ('grad', '.2f'),
    }
    for name, (label, spec) in shown.items():
        if name in scalars:
            parts.append(f'{label} {scalars[name]:{spec}}')
    if 'images_per_second' in scalars:
        per_device = scalars['images_per_second_per_device']
        parts.append(f'{scalars["images_per_second"]:,.0f} img/s ({per_device:,.0f}/device)')
        parts.append(f'wait {scalars["input_wait"]:.0%}')
    if 'mfu' in scalars:
        parts.append(f'mfu {scalars["mfu"]:.0%}')
    if scalars.get('skipped_steps'):
        parts.append(f'skipped {scalars["skipped_steps"]:.0f}')
    if scalars.get('replaced_images'):
        parts.append(f'replaced {scalars["replaced_images"]:.0f}')
    if 'eta_seconds' in scalars:
        parts.append(f'eta {format_seconds(scalars["eta_seconds"])}')
    return '  '.join(parts)


def format_seconds(seconds: float) -> str:
    """42s, 3m05s, 7h12m, 3d04h."""
    seconds = round(seconds)
    for unit, name, below, below_name in ((86400, 'd', 3600, 'h'), (3600, 'h', 60, 'm')):
        if seconds >= unit:
            return f'{seconds // unit}{name}{seconds % unit // below:02d}{below_name}'
    return f'{seconds // 60}m{seconds % 60:02d}s' if seconds >= 60 else f'{seconds}s'


def parameter_table(params: Any, is_trained: Callable[[str], bool]) -> str:
    """Name, shape and size of every parameter; the blocks, which are alike, in one row each."""
    rows: dict[tuple, list[int]] = {}
    total = trained = 0
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        fixed = '' if is_trained('/'.join(names)) else 'fixed'
        total += value.size
        trained += 0 if fixed else value.size
        alike = ['block_*' if name.startswith('block_') else name for name in names]
        rows.setdefault(('/'.join(alike), str(value.shape), fixed), []).append(value.size)
    lines = [
        f'{name:<44} {shape:<16} {len(sizes):>3} x {sizes[0]:>12,}  {fixed}'.rstrip()
        for (name, shape, fixed), sizes in rows.items()
    ]
    return '\n'.join([*lines, f'{total:,} parameters, {trained:,} of them trained'])


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
