"""Measures the cost of a checkpoint: the time it blocks the loop, and slows concurrent steps.

    python benchmarks/checkpoint_stall.py --variant=vit_base --batch_size=8 --steps=20

Prints a Markdown table. Segments of the training loop with a save and without one are timed
alternately in one process. Each consists of one step, the save if any, and `--steps` more, during
which the checkpoint is written. A segment ends when the checkpoint is complete on disk. If the
steps end before that, a note gives the time that the loop waited; increase `--steps` then.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from loop_overhead import Bench
from measure import circumstances, interleaved, markdown, others_cpu_share
from train_step import make_task

from mae_jax.models.vit import VARIANTS
from mae_jax.training.loop import Scalars
from mae_jax.training.state import TrainState

INTERVAL = 2500
"""`checkpoint_every_steps` of configs/default.py."""


class Segments:
    """Runs segments of a `Bench`, and records times of those that save, in seconds.

    Attributes:
      blocked: time until `save` returned, one for each segment with a save.
      waited: time that the loop waited for the checkpoint after the last step.
    """

    def __init__(self, bench: Bench):
        self._bench = bench
        self.blocked: list[float] = []
        self.waited: list[float] = []

    def without(self) -> None:
        """Runs a segment without a save."""
        self._bench.train(1, lambda step, state, metrics: None)
        self._finish()

    def with_save(self) -> None:
        """Runs a segment with a save, and waits until the checkpoint is complete."""
        checkpoints, started = self._bench.checkpoints, 0.0

        def save(step: int, state: TrainState, metrics: Scalars) -> None:
            nonlocal started
            started = time.perf_counter()
            checkpoints.save(step, state, {})
            self.blocked.append(time.perf_counter() - started)

        self._bench.train(1, save)
        self._finish()
        ended = time.perf_counter()
        checkpoints.wait()
        self.waited.append(time.perf_counter() - ended)

    def _finish(self) -> None:
        self._bench.train(self._bench.steps, lambda step, state, metrics: None)
        jax.block_until_ready(self._bench.state)


def folder_bytes(folder: Path) -> int:
    """Returns the bytes of all files in a directory."""
    return sum(path.stat().st_size for path in folder.rglob('*') if path.is_file())


def table(
    without: np.ndarray,
    with_save: np.ndarray,
    blocked: np.ndarray,
    *,
    steps: int,
    size: int,
    epoch: int,
) -> list[list[str]]:
    """Makes the rows of the table, each a name, a median and a range.

    Args:
      without, with_save: seconds of paired segments of `steps` steps.
      blocked: seconds of each save until it returned.
      size: size of a checkpoint in bytes.
      epoch: steps in an epoch of a small run.
    """
    step, cost = without / steps, with_save - without

    def row(name: str, values: np.ndarray, form: str) -> list[str]:
        spread = (format(f(values), form) for f in (np.min, np.max))
        return [name, format(np.median(values), form), ' - '.join(spread)]

    return [
        row('a step, ms', step * 1e3, '.1f'),
        row('a save blocks the loop for, ms', blocked * 1e3, '.0f'),
        row('a save takes from training, steps beside it included, ms', cost * 1e3, '.0f'),
        row(
            f'of a step on average, one save every {INTERVAL} steps',
            cost / step / INTERVAL,
            '.2%',
        ),
        row(f'of a step on average, one every {epoch} steps', cost / step / epoch, '.2%'),
        ['a checkpoint, MB', f'{size / 1e6:.0f}', ''],
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--variant', default='vit_base', choices=VARIANTS)
    parser.add_argument('--batch_size', type=int, default=8)
    parser.add_argument('--image_size', type=int, default=224)
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'])
    parser.add_argument('--steps', type=int, default=20, help='steps of a segment after the save')
    parser.add_argument('--repeats', type=int, default=5, help='segments of each kind')
    parser.add_argument(
        '--epoch_images', type=int, default=9469, help='of a small data set, saved once per epoch'
    )
    parser.add_argument('--folder', help='directory on the disk to write to; default: in /tmp')
    args = parser.parse_args(argv)

    task = make_task(args.variant, args.image_size, args.dtype)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        bench = Bench(task, args.batch_size, args.steps, log_every=50, folder=Path(folder))
        segments = Segments(bench)
        others = others_cpu_share()
        # The first pair is not measured: it compiles, and does not delete an old checkpoint.
        without, with_save = interleaved([segments.without, segments.with_save], args.repeats)
        notes = circumstances(args.repeats, others())
        size = folder_bytes(Path(folder) / 'checkpoints' / str(bench.checkpoints.steps()[-1]))
        bench.close()
    notes.append(
        f'segments of {args.steps + 1} steps; the loop waited for the checkpoint at their end for '
        f'{np.median(segments.waited[1:]) * 1e3:.0f} ms'
    )
    rows = table(
        without,
        with_save,
        np.array(segments.blocked[1:]),
        steps=args.steps + 1,
        size=size,
        epoch=max(args.epoch_images // args.batch_size, 1),
    )
    print(
        f'{args.variant} pretraining, batch {args.batch_size}, {args.image_size} px, {args.dtype}\n'
    )
    print(markdown(notes, ['', 'median', 'least - most'], rows))


if __name__ == '__main__':
    main()
