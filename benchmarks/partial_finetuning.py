"""Measures partial fine-tuning: the paper's Figure 9 at the size of a laptop.

    python benchmarks/partial_finetuning.py --data=imagenette96 --pretrained=runs/imagenette

Fine-tunes the last k blocks of a pretrained encoder, and of the same encoder untrained, probes both
linearly, trains from scratch for the same number of steps, and prints a Markdown table of top-1 on
the held-out images. Every run is a run of main.py in a separate directory: an interrupted study
resumes. Needs matplotlib for the plot.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
DEPTH = 6

COMMON = [
    '--config.image_size=64',
    '--config.model.variant=vit_tiny',
    '--config.model.patch_size=8',
    '--config.model.width=128',
    f'--config.model.depth={DEPTH}',
    '--config.model.heads=4',
    '--config.model.dtype=float32',
    '--config.dataset.name=folder',
    '--config.dataset.channels=3',
    '--config.dataset.scale=255.0',
    '--config.dataset.mean=0.485,0.456,0.406',
    '--config.dataset.std=0.229,0.224,0.225',
    '--config.log_every_steps=74',
]
"""The model of the pretraining run, and the statistics of its data."""

SHORT = [
    '--config.batch_size=64',
    '--config.num_epochs=4',
    '--config.optimizer.warmup_epochs=0.5',
    '--config.optimizer.base_lr=4e-3',
    '--config.model.drop_path=0.0',
    '--config.mix.mixup=0.0',
    '--config.mix.cutmix=0.0',
    '--config.dataset.augment=',
    '--config.dataset.erase=0.0',
    '--config.dataset.crop_scale=0.35,1.0',
]
"""Four epochs leave no time for strong regularisation; the same for every run."""

LINPROBE = [
    '--config.cache_features=True',
    '--config.batch_size=1024',
    '--config.optimizer.name=lars',
    '--config.optimizer.base_lr=1.0',
    '--config.optimizer.warmup_epochs=10.0',
    '--config.num_epochs=90',
]

SCRATCH = [
    '--config.trained=all',
    '--config.optimizer.layer_decay=1.0',
    '--config.optimizer.weight_decay=0.3',
    '--config.optimizer.b2=0.95',
]
"""The fields in which the paper's recipe from scratch differs from fine-tuning."""


def runs(blocks: list[str]) -> dict[str, tuple[str, list[str]]]:
    """Returns name -> (config, its flags) for each run."""
    flags = {'linear probe': ('linprobe', LINPROBE)}
    for k in blocks:
        flags[f'k = {k}'] = ('partial', [*SHORT, f'--config.trained={k}'])
    return flags


def top1(workdir: Path) -> float:
    """Returns the last held-out top-1 accuracy of a run."""
    lines = (workdir / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines if 'eval/top1' in line][-1]['eval/top1']


def train(config: str, workdir: Path, data: str, flags: list[str]) -> float:
    """Runs main.py, prints its command and time, and returns top-1."""
    command = [
        *(sys.executable, 'main.py', f'--config=configs/{config}.py', f'--workdir={workdir}'),
        *(f'--config.dataset.path={data}', *COMMON, *flags),
    ]
    print(' '.join(command[1:]), flush=True)
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    print(f'  top-1 {top1(workdir):.4f}, {time.perf_counter() - start:.0f} s', flush=True)
    return top1(workdir)


def plot(table: dict[str, dict[str, float]], blocks: list[str], scratch: float, path: Path) -> None:
    """Plots top-1 over the number of trained blocks."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5, 3.5), layout='constrained')
    for start, marker in (('pretrained', 'o'), ('untrained', 's')):
        accuracies = [100 * table[f'k = {k}'][start] for k in blocks]
        axes.plot([float(k) for k in blocks], accuracies, marker=marker, label=start)
    axes.axhline(100 * scratch, color='grey', linestyle=':', label='from scratch')
    axes.set(xlabel='blocks that learn', ylabel='top-1, %', xticks=[float(k) for k in blocks])
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data', required=True, help='an image folder, such as imagenette96')
    parser.add_argument('--pretrained', required=True, help='work directory of the pretraining')
    parser.add_argument('--out', default='runs/partial_finetuning', type=Path)
    parser.add_argument('--blocks', default='0,1,4,6', help='numbers of blocks that learn')
    parser.add_argument('--seed', default=0, type=int)
    options = parser.parse_args()
    blocks = options.blocks.split(',')
    seed = f'--config.seed={options.seed}'
    out = options.out / f'seed{options.seed}'

    table: dict[str, dict[str, float]] = {}
    for name, (config, flags) in runs(blocks).items():
        table[name] = {}
        for start in ('pretrained', 'untrained'):
            workdir = out / f'{name.replace(" ", "_")}_{start}'
            init = [f'--config.init_from={options.pretrained}'] if start == 'pretrained' else []
            table[name][start] = train(config, workdir, options.data, [*flags, seed, *init])
    scratch = train('partial', out / 'scratch', options.data, [*SHORT, *SCRATCH, seed])

    print('\n| | pretrained | untrained |\n|---|---|---|')
    for name, row in table.items():
        print(f'| {name} | {row["pretrained"]:.3f} | {row["untrained"]:.3f} |')
    print(f'| from scratch | | {scratch:.3f} |')
    plot(table, blocks, scratch, out / 'partial.png')
    print(f'plot: {out / "partial.png"}')


if __name__ == '__main__':
    main()
