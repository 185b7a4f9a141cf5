"""Measures the overhead of the training loop over the bare step.

    python benchmarks/loop_overhead.py --variant=vit_tiny --image_size=96 --batch_size=32

Prints a Markdown table. Both train on the same batch, alternately, in one process. The bare step
waits only for its last result. The loop fetches the metrics of every step, writes the console line,
metrics.jsonl and TensorBoard every `--log_every` steps, and saves a checkpoint in every segment,
which is far more often than in a real run. Neither includes the input.
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from measure import hardware, interleaved, others_cpu_share, versions
from train_step import make_task

from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.models.vit import VARIANTS
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.training import sharding as mesh_lib
from mae_jax.training.loop import Intervals, Recorder, Saver, Scalars, train
from mae_jax.training.metrics import MetricsWriter
from mae_jax.training.optimizer import make_optimizer, make_schedule
from mae_jax.training.state import TrainState, create_state, jit_step, make_step
from mae_jax.training.throughput import Throughput


class OneBatch:
    """An endless iterator of one batch that is always ready."""

    def __init__(self, batch: dict[str, jax.Array]):
        self._batch = batch

    def ready(self) -> bool:
        return True

    def __next__(self) -> dict[str, jax.Array]:
        return self._batch


class Bench:
    """Holds a jitted step and its state, and trains it in segments of `steps` steps.

    Attributes:
      state: after the last segment.
      checkpoints: of the segments that save.
    """

    def __init__(self, task: Pretrain, batch_size: int, steps: int, log_every: int, folder: Path):
        mesh = mesh_lib.make_mesh()
        schedule = make_schedule(peak=1e-4, total_steps=10**6)
        tx = make_optimizer('adamw', schedule, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)
        images = np.random.default_rng(0).integers(
            0, 256, (batch_size, *task.image_size, len(task.mean)), np.uint8
        )
        self.steps, self.log_every = steps, log_every
        self.batch = mesh_lib.put_batch(mesh, {'image': images})
        self.state = create_state(task, tx, mesh, seed=0)
        self.step = jit_step(make_step(task, tx, seed=0), mesh, self.state)
        self.checkpoints = Checkpoints(folder / 'checkpoints', keep_last=1)
        self.writer = MetricsWriter(
            folder,
            start_step=0,
            total_steps=10**6,
            steps_per_epoch=1000.0,
            console=(folder / 'console').open('w'),
        )
        self.throughput = Throughput(
            batch_size=batch_size,
            flops_per_image=task.flops_per_image(),
            devices=list(mesh.devices.flat),
            total_steps=10**6,
        )

    def bare(self) -> None:
        """Runs a segment of bare steps."""
        for _ in range(self.steps):
            self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))

    def looped(self) -> None:
        """Runs a segment in the training loop, which saves at its end."""
        self.train(self.steps, lambda step, state, metrics: self.checkpoints.save(step, state, {}))

    def train(self, steps: int, save: Callable[[int, TrainState, Scalars], None]) -> None:
        """Runs `steps` steps of the loop, which calls `save` after the last of them."""
        last = int(self.state.step) + steps
        self.state = train(
            self.state,
            self.step,
            OneBatch(self.batch),
            Intervals(last, log=self.log_every, checkpoint=steps),
            recorder=Recorder(self.throughput, self.writer.scalars, self.writer.progress),
            saver=Saver(save),
        )
        jax.block_until_ready(self.state)

    def close(self) -> None:
        self.checkpoints.close()
        self.writer.close()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--variant', default='vit_tiny', choices=VARIANTS)
    parser.add_argument('--decoder_width', type=int, default=128)
    parser.add_argument('--decoder_depth', type=int, default=2)
    parser.add_argument('--image_size', type=int, default=96)
    parser.add_argument('--batch_size', type=int, default=32)
    parser.add_argument('--steps', type=int, default=100, help='steps of a segment')
    parser.add_argument('--log_every', type=int, default=10)
    parser.add_argument('--repeats', type=int, default=5, help='segments of each kind')
    args = parser.parse_args(argv)

    decoder = dict(
        decoder_width=args.decoder_width,
        decoder_depth=args.decoder_depth,
        decoder_heads=args.decoder_width // 32,
    )
    task = make_task(args.variant, args.image_size, 'float32', **decoder)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(task, args.batch_size, args.steps, args.log_every, Path(folder))
        others = others_cpu_share()
        bare, looped = interleaved([bench.bare, bench.looped], args.repeats) / args.steps
        others = others()
        bench.close()
        size = os.path.getsize(Path(folder) / 'metrics.jsonl')
    assert size, 'the loop logged nothing'
    print(
        f'{args.variant}, batch {args.batch_size}, {args.image_size} px, float32; a log line every '
        f'{args.log_every} steps, a checkpoint every {args.steps}\n\n- {hardware()}\n- {versions()}'
        f'\n- medians of {args.repeats} interleaved segments of {args.steps} steps'
        + ('' if others is None else f'; other processes took {others:.0%} of the machine')
    )
    ratios = looped / bare
    print('\n| | ms a step |\n|---|---|')
    print(f'| bare step | {np.median(bare) * 1e3:.1f} |')
    print(f'| loop | {np.median(looped) * 1e3:.1f} |')
    print(
        f'| the loop costs | {np.median(ratios) - 1:+.1%} '
        f'({np.min(ratios) - 1:+.1%} to {np.max(ratios) - 1:+.1%}) |'
    )


if __name__ == '__main__':
    main()
