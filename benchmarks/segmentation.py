"""Measures what pretraining gives to segmentation: mIoU of two heads on several encoders.

    python benchmarks/segmentation.py --data=camvid --pretrained photographs=runs/imagenette \
        scenes=runs/camvid --seeds 0 1 2

Trains the linear head and UperNet on each encoder, frozen and fine-tuned, and on the same encoder
untrained, and prints a Markdown table: mean and standard deviation over the seeds of the last
held-out mIoU. Writes curve.png: mIoU over steps. `--rates` multiplies the learning rate of the
rule, one row each (unset: `RATES`); `--set` changes fields of all runs. Finished runs in `--out`
are not repeated.

The time is that of the processor (user and system, all threads), divided by two for two cores: what
else runs on the machine hardly changes it.
"""

import argparse
import contextlib
import io
import itertools
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mae_jax import run
from mae_jax.config.fields import apply_overrides
from mae_jax.config.files import load_config
from mae_jax.experiment.inherit import inherit
from mae_jax.experiment.setup import make_setup
from mae_jax.runtime.compilation_cache import keep_compiled

HEADS = 'linear', 'upernet'
TRAINED = {'frozen': 'head', 'fine-tuned': 'all'}
UNTRAINED = 'untrained'
RATES = {'frozen': 10.0, 'fine-tuned': 30.0}
"""Of a few hundred steps, times those of the rule, which are for thousands."""
SECONDS = 'processor_seconds'
SMALL = [
    'dataset.short_side=96',
    'stride=64',
    'model.head_width=32',
    'model.dtype=float32',
    'per_class=False',
    'image_every_steps=0',
    'checkpoint_every_steps=1000000',
    'log_every_steps=50',
]
"""Four windows of 64 pixels hold a scene of 96 x 128; a narrow UperNet, as the encoder is."""


class Cell(NamedTuple):
    """What is measured with several seeds."""

    head: str
    trained: str
    encoder: str
    rate: float

    @property
    def folder(self) -> str:
        return f'{self.head}_{self.trained}_{self.encoder}_rate{self.rate:g}'


def configure(cell: Cell, seed: int, options: argparse.Namespace) -> ConfigDict:
    """Returns the config of a run. An untrained encoder has the sizes of the first other one."""
    config = load_config(f'configs/segment.py:{cell.head}')
    encoders = dict(options.pretrained)
    config.init_from = encoders.get(cell.encoder, options.pretrained[0][1])
    config.dataset.path = options.data
    config.seed, config.trained = seed, TRAINED[cell.trained]
    config.num_steps, config.eval_every_steps = options.steps, options.steps // options.points
    apply_overrides(config, SMALL + options.set)
    config = inherit(config, '')
    if cell.encoder == UNTRAINED:
        config.init_from = None
    if cell.rate != 1:
        with contextlib.redirect_stdout(io.StringIO()):
            chosen = make_setup(config, '').config.optimizer.base_lr
        config.optimizer.base_lr = cell.rate * chosen
    return config


def processor_seconds() -> float:
    """Returns the processor time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def curve(cell: Cell, seed: int, options: argparse.Namespace) -> dict[int, float]:
    """Runs a config where it has not been run, and returns held-out mIoU over steps."""
    workdir = options.out / cell.folder / f'seed{seed}'
    if not (workdir / SECONDS).exists():
        start = processor_seconds()
        with contextlib.redirect_stdout(io.StringIO()):
            run(configure(cell, seed, options), str(workdir))
        (workdir / SECONDS).write_text(f'{processor_seconds() - start:.1f}')
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return {line['step']: line['eval/miou'] for line in lines if 'eval/miou' in line}


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Yields what is measured, the encoders of one head beside each other."""
    encoders = [*dict(options.pretrained), *([] if options.no_untrained else [UNTRAINED])]
    for head, trained, encoder in itertools.product(options.heads, options.trained, encoders):
        for rate in options.rates or [RATES[trained]]:
            yield Cell(head, trained, encoder, rate)


Results = dict[Cell, list[dict[int, float]]]


def table(results: Results) -> str:
    """Returns a row for each cell: the last mIoU in percent."""
    rows = ['| head | encoder | pretrained on | mIoU |', '|---|---|---|---|']
    for cell, curves in results.items():
        last = 100 * np.array([list(each.values())[-1] for each in curves])
        spread = f' ± {last.std(ddof=1):.1f}' if len(last) > 1 else ''
        name = '-' if cell.encoder == UNTRAINED else cell.encoder
        name += f', learning rate x {cell.rate:.2g}' if cell.rate != RATES[cell.trained] else ''
        rows.append(f'| {cell.head} | {cell.trained} | {name} | {last.mean():.1f}{spread} |')
    return '\n'.join(rows)


def plot(results: Results, path: Path) -> None:
    """Plots mIoU over steps, a panel for each head, frozen and fine-tuned."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((cell.head, cell.trained) for cell in results))
    figure = Figure(figsize=(3.1 * len(panels), 3.4), layout='constrained')
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for (head, trained), axes in zip(panels, row, strict=True):
        axes.set(title=f'{head}, {trained}', xlabel='steps')
        axes.grid(alpha=0.3)
        for cell, curves in results.items():
            if (cell.head, cell.trained) == (head, trained):
                steps = list(curves[0])
                miou = 100 * np.array([[each[step] for step in steps] for each in curves])
                mean, spread = miou.mean(0), miou.std(0, ddof=int(len(miou) > 1))
                changed = cell.rate != RATES[trained]
                label = cell.encoder + (f' x {cell.rate:.2g}' if changed else '')
                (line,) = axes.plot(steps, mean, marker='o', markersize=3, label=label)
                axes.fill_between(
                    steps, mean - spread, mean + spread, alpha=0.2, color=line.get_color(), lw=0
                )
    row[0].set_ylabel('mIoU, %')
    row[0].legend()
    figure.savefig(path, dpi=120)


def pair(text: str) -> tuple[str, str]:
    """Reads NAME=RUN."""
    name, found, path = text.partition('=')
    if not found:
        raise argparse.ArgumentTypeError(f'{text!r} must be NAME=RUN.')
    return name, path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', required=True, help='images/ and annotations/')
    parser.add_argument('--pretrained', required=True, nargs='+', type=pair, metavar='NAME=RUN')
    parser.add_argument('--out', default='runs/segmentation', type=Path)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--steps', type=int, default=400)
    parser.add_argument('--points', type=int, default=4, help='evaluations in a run')
    parser.add_argument('--heads', nargs='+', default=HEADS, choices=HEADS)
    parser.add_argument('--trained', nargs='+', default=[*TRAINED], choices=[*TRAINED])
    parser.add_argument('--rates', nargs='+', type=float, default=[])
    parser.add_argument('--no-untrained', action='store_true')
    parser.add_argument('--set', nargs='+', default=[], action='extend', metavar='FIELD=VALUE')
    options = parser.parse_args()

    keep_compiled(options.out)
    results: Results = {}
    for seed in options.seeds:  # the outer loop: an interrupted study has whole seeds
        for cell in cells(options):
            measured = curve(cell, seed, options)
            results.setdefault(cell, []).append(measured)
            seconds = (options.out / cell.folder / f'seed{seed}' / SECONDS).read_text()
            values = ' '.join(f'{100 * value:.1f}' for value in measured.values())
            print(f'{cell.folder} seed {seed}: mIoU {values}; {seconds} s', flush=True)
    folders = [options.out / cell.folder / f'seed{s}' for cell in results for s in options.seeds]
    total = sum(float((folder / SECONDS).read_text()) for folder in folders)
    print(f'\n{table(results)}\n\n{total / 120:.1f} minutes of processor time on each of two cores')
    plot(results, options.out / 'curve.png')


if __name__ == '__main__':
    main()
