"""Measures how soon a small detector learns drawn scenes, from a pretrained encoder and without.

    python benchmarks/detection.py --out=runs/detection

Draws 300 scenes of 128 pixels, of three shapes that overlap, and 100 others to evaluate; pretrains
a small encoder on 3,000 more, without annotations; trains a detector from it, and the same from
random weights, for each seed. Prints a Markdown table of the steps at which box and mask AP50,
means of the seeds, reach their goals, and of the last values, and draws the curves and a picture of
detections. Every run is a run of main.py in a directory of its own: an interrupted study resumes.
Times are of processor cores, which do not depend on what else the machine does. Needs matplotlib
and pycocotools.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tests'))  # the scenes are those of the tests

Values = Mapping[int, Mapping[str, float]]
"""Step -> the values that were measured at it."""

GOALS = {'eval/box_ap50': 0.8, 'eval/mask_ap50': 0.7}
SIZE = 128
SCENES = {'train2017': 300, 'val2017': 100, 'unlabelled': 3000}
LOOK = dict(hidden=0.3, margin=0.1, noise=10.0, vivid=True)
"""No shape is covered by more than 30% at once or cut in half. Colour does not tell shapes from the
ground: where it does, a random encoder serves as well as a pretrained one."""

MODEL = [
    f'--config.image_size={SIZE}',
    '--config.model.variant=vit_tiny',
    '--config.model.patch_size=16',
    '--config.model.width=192',
    '--config.model.depth=4',
    '--config.model.heads=3',
    '--config.model.dtype=float32',
    '--config.dataset.channels=3',
    '--config.dataset.scale=255.0',
    '--config.dataset.mean=0.5,0.5,0.5',
    '--config.dataset.std=0.25,0.25,0.25',
]
"""The encoder of all runs, and the statistics of their images."""

PRETRAIN = [
    '--config.batch_size=64',
    '--config.mask.ratio=0.5',
    '--config.model.decoder_width=128',
    '--config.model.decoder_depth=2',
    '--config.model.decoder_heads=4',
    '--config.dataset.name=folder',
    '--config.dataset.crop_scale=0.5,1.0',
    '--config.optimizer.base_lr=0.004',
    '--config.dataset.repeats=4',
    '--config.target.name=pixel',
    '--config.eval_every_steps=500',
    '--config.image_every_steps=500',
    '--config.checkpoint_every_steps=500',
]
"""Plain pixels: normalised, the patches of a smooth background are noise. Half of the patches are
masked, since shapes are one to four patches across."""

DETECT = [
    '--config.batch_size=8',
    '--config.model.channels=32',
    '--config.model.anchor_sizes=12.0,24.0,48.0,96.0,128.0',
    '--config.model.anchor_samples=128',
    '--config.model.proposal_convolutions=1',
    '--config.model.before_nms=100',
    '--config.model.before_nms_train=200',
    '--config.model.after_nms=100',
    '--config.model.roi_samples=32',
    '--config.model.box_convolutions=1',
    '--config.model.mask_convolutions=2',
    '--config.model.box_width=128',
    '--config.model.detections=20',
    '--config.model.drop_path=0.0',
    '--config.dataset.max_boxes=8',
    '--config.dataset.jitter=0.5,1.5',
    '--config.optimizer.base_lr=0.016',
    '--config.optimizer.weight_decay=0.05',
    '--config.optimizer.layer_decay=0.9',
    '--config.optimizer.warmup_epochs=2.0',
]
"""Anchors of the size of the shapes; narrow heads, and few samples of an image."""


def draw(out: Path) -> Path:
    """Draws the scenes, if they are not there."""
    from helpers.scenes import draw_scenes

    scenes = out / 'scenes'
    for seed, (split, count) in enumerate(SCENES.items()):
        if not (scenes / 'annotations' / f'instances_{split}.json').exists():
            draw_scenes(scenes, count, SIZE, seed, split=split, **LOOK)
    return scenes


def train(config: str, workdir: Path, flags: Sequence[str]) -> float:
    """Runs main.py, and returns the processor time of it and its threads in minutes.

    Those of earlier starts of the run are in the sum.
    """
    command = [
        *(sys.executable, 'main.py', f'--config=configs/{config}.py', f'--workdir={workdir}'),
        *(*MODEL, *flags),
    ]
    print(' '.join(command[1:]), flush=True)
    spent = workdir.with_suffix('.minutes')
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    try:
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    finally:
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        minutes = (after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime) / 60
        minutes += float(spent.read_text()) if spent.exists() else 0.0
        spent.write_text(f'{minutes:.2f}\n')
    print(f'  {minutes:.1f} minutes of a core', flush=True)
    return minutes


def evaluations(workdir: Path) -> Values:
    """Returns step -> the AP50s that were measured at it."""
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    found = [line for line in lines if 'eval/box_ap' in line]
    return {line['step']: {name: line[name] for name in GOALS} for line in found}


def mean(seeds: Sequence[Values]) -> Values:
    """Averages the values of each step."""
    return {
        step: {name: statistics.fmean(values[step][name] for values in seeds) for name in GOALS}
        for step in seeds[0]
    }


def steps_to_goals(values: Values) -> dict[str, int | None]:
    """Returns the first step at which each goal is reached, None where it is not."""
    return {
        name: next((step for step in sorted(values) if values[step][name] >= goal), None)
        for name, goal in GOALS.items()
    }


def format_table(
    runs: Mapping[str, Sequence[Values]], minutes: Mapping[str, float], steps: int
) -> str:
    """Formats a row for each encoder, from the mean of its seeds."""
    kinds = zip(('box', 'mask'), GOALS.values(), strict=True)
    goals = [f'{kind} AP50 of {goal}' for kind, goal in kinds]
    lines = [
        f'| encoder | {goals[0]} | {goals[1]} | core-minutes until both | box AP50 | mask AP50 |',
        '|---|---|---|---|---|---|',
    ]
    for name, seeds in runs.items():
        values = mean(seeds)
        reached, last = steps_to_goals(values), values[max(values)]
        texts = ['-' if step is None else f'step {step:,}' for step in reached.values()]
        both = None if None in reached.values() else max(reached.values())
        cost = '-' if both is None else f'{minutes[name] * both / steps:.0f}'
        finals = ' | '.join(f'{last[metric]:.3f}' for metric in GOALS)
        lines.append(f'| {name} | {" | ".join(texts)} | {cost} | {finals} |')
    return '\n'.join(lines)


def plot(runs: Mapping[str, Sequence[Values]], path: Path) -> None:
    """Plots AP50 of boxes and masks over the steps: the mean, and in thin lines the seeds."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), layout='constrained', sharey=True)
    for axis, (metric, goal) in zip(axes, GOALS.items(), strict=True):
        for color, (name, seeds) in zip(('C0', 'C1'), runs.items(), strict=True):
            for values in seeds:
                thin = [values[step][metric] for step in values]
                axis.plot(list(values), thin, color=color, linewidth=0.5)
            curve = mean(seeds)
            axis.plot(list(curve), [v[metric] for v in curve.values()], color=color, label=name)
        axis.axhline(goal, color='grey', linestyle=':')
        axis.set(xlabel='steps', ylabel=metric.removeprefix('eval/').replace('_ap', ' AP'))
        axis.set_ylim(0, 1)
    axes[0].legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', default='runs/detection', type=Path)
    parser.add_argument('--steps', default=4000, type=int, help='of detection')
    parser.add_argument('--pretrain_steps', default=1500, type=int)
    parser.add_argument('--eval_every', default=250, type=int)
    parser.add_argument('--seeds', default=2, type=int, help='of the detector')
    options = parser.parse_args()
    scenes, out = draw(options.out.absolute()), options.out.absolute()
    pretrained = out / 'pretrained'
    data = f'--config.dataset.path={scenes / "unlabelled"}'
    length = f'--config.num_steps={options.pretrain_steps}'
    train('folder', pretrained, [data, length, *PRETRAIN])
    detect = [f'--config.dataset.path={scenes}', f'--config.num_steps={options.steps}', *DETECT]
    detect += [
        f'--config.{field}={options.eval_every}'
        for field in ('eval_every_steps', 'checkpoint_every_steps', 'image_every_steps')
    ]
    encoders = {'pretrained': [f'--config.init_from={pretrained}'], 'untrained': []}
    runs, minutes = {name: [] for name in encoders}, dict.fromkeys(encoders, 0.0)
    for seed in range(options.seeds):
        for name, init in encoders.items():
            workdir = out / f'detect_{name}_{seed}'
            spent = train('detect', workdir, [*detect, f'--config.seed={seed}', *init])
            minutes[name] += spent / options.seeds
            runs[name].append(evaluations(workdir))
    table = format_table(runs, minutes, options.steps)
    print(f'\n{table}')
    (out / 'table.md').write_text(table + '\n')
    plot(runs, out / 'detection.png')
    show = [sys.executable, '-m', 'mae_jax', 'visualize', str(out / 'detect_pretrained_0')]
    files = sorted((scenes / 'val2017').glob('*.png'))[:6]
    show += [*map(str, files), '--show=detection', '--abreast=2', '--overwrite']
    subprocess.run([*show, f'--out={out / "detections.png"}'], cwd=ROOT, check=True)
    print(f'curves: {out / "detection.png"}; pictures: {out / "detections.png"}')


if __name__ == '__main__':
    main()
