"""What an ablation came to, beside the paper's figures: results.json, table.md and plot.png."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_jax.ablation.stage import write as write_file

if TYPE_CHECKING:
    from mae_jax.ablation.suite import Plan

SCORES = {'finetune': 'fine-tune', 'linprobe': 'linear'}
SWEPT = {'mask.ratio': 'mask ratio', 'num_epochs': 'epochs of pretraining'}
LABEL = 42
"""Letters of a row's label that a plot has room for."""
Results = Mapping[str, Mapping[int, Mapping[str, Mapping[str, Any]]]]
"""Run -> seed -> stage -> result."""


def write(plan: 'Plan', out: Path, results: Results) -> None:
    """Writes results.json and table.md anew."""
    rows = {
        name: {
            'table': row.table,
            'label': row.label,
            'run': plan.run_of[name],
            'paper': {score: getattr(row, score) for score in SCORES},
            **{score: percents(results[plan.run_of[name]], score) for score in SCORES},
        }
        for name, row in plan.rows.items()
    }
    found = {'suite': plan.suite, 'rows': rows, 'runs': results}
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / 'results.json', json.dumps(found, indent=2) + '\n')
    write_file(out / 'table.md', table(plan, results))


def percents(seeds: Mapping[int, Mapping[str, Mapping[str, Any]]], score: str) -> dict[int, float]:
    """Seed -> top-1 in percent, of the seeds that have got there."""
    found = {seed: stages.get(score, {}).get('top1') for seed, stages in seeds.items()}
    return {seed: 100 * top1 for seed, top1 in found.items() if top1 is not None}


def table(plan: 'Plan', results: Results) -> str:
    """Markdown: a section for each of the paper's tables, a row for each row."""
    lines = [
        f'# Ablations: {plan.suite}',
        '',
        'Top-1 on the held-out images in percent: the mean over seeds (least - greatest).',
    ]
    for key, title in plan.tables.items():
        rows = {name: row for name, row in plan.rows.items() if row.table == key}
        if not rows:
            continue
        kind = f'Table {key}: ' if key.startswith('1') else f'{key}: ' if key else ''
        lines += ['', f'## {kind}{title.lower() if kind else title}', '']
        lines += ['| row | fine-tune | linear | seeds | paper: fine-tune | paper: linear |']
        lines += ['|---|---|---|---|---|---|']
        for name, row in rows.items():
            seeds = results[plan.run_of[name]]
            ours = [cell(seeds, score) for score in SCORES]
            paper = [_paper(getattr(row, score)) for score in SCORES]
            count = len({seed for score in SCORES for seed in percents(seeds, score)})
            lines.append(f'| {" | ".join([row.label, *ours, str(count), *paper])} |')
    failures = [
        f'- {run}/seed{seed}/{stage} (exit status {result["exit_status"]}): {result["error"]}'
        for run, seeds in results.items()
        for seed, stages in seeds.items()
        for stage, result in stages.items()
        if result['status'] == 'failed'
    ]
    if failures:
        lines += ['', '## Failed', '', *failures]
    return '\n'.join(lines) + '\n'


def cell(seeds: Mapping[int, Mapping[str, Mapping[str, Any]]], score: str) -> str:
    """'51.2 (50.9 - 51.6)'; 'failed' where a stage that it takes has; '...': not run yet."""
    values = list(percents(seeds, score).values())
    failed = sum(
        stages.get(stage, {}).get('status') == 'failed'
        for stages in seeds.values()
        for stage in ('pretrain', score)
    )
    if not values:
        return 'failed' if failed else '...'
    told = f'{sum(values) / len(values):.1f}'
    if len(values) > 1:
        told += f' ({min(values):.1f} - {max(values):.1f})'
    return f'{told}, {failed} failed' if failed else told


def _paper(top1: float | None) -> str:
    return '' if top1 is None else f'{top1:.1f}'


def plot(plan: 'Plan', out: Path, results: Results) -> str:
    """Draws plot.png, where there is matplotlib; returns a sentence on what was written."""
    told = f'table: {out / "table.md"}'
    try:
        import matplotlib
    except ImportError:
        return f'{told}; no plot.png: matplotlib is not installed (pip install matplotlib)'
    matplotlib.use('Agg')
    from matplotlib import pyplot

    field = swept(plan)
    size = (9, 3.6) if field else (11, 1.6 + 0.27 * len(plan.rows))
    figure, panels = pyplot.subplots(1, 2, figsize=size, sharey=not field, layout='constrained')
    for panel, (score, title) in zip(panels, SCORES.items(), strict=True):
        panel.set_title(title)
        ours = {name: percents(results[run], score) for name, run in plan.run_of.items()}
        if field:
            _draw_sweep(panel, plan, ours, field)
        else:
            _draw_rows(panel, plan, ours, score)
    figure.savefig(out / 'plot.png', dpi=120)
    pyplot.close(figure)
    return f'{told}; plot: {out / "plot.png"}'


def swept(plan: 'Plan') -> str | None:
    """The field that every row sets, each to a value of its own: what a curve is drawn over."""
    for field in SWEPT:
        values = {row.changes.get(field) for row in plan.rows.values()}
        if None not in values and len(values) == len(plan.rows) > 1:
            return field
    return None


def _draw_rows(
    panel: Any, plan: 'Plan', ours: Mapping[str, Mapping[int, float]], score: str
) -> None:
    """Ours above the lower axis and the paper's above the upper one: it is orders that compare."""
    names = list(plan.rows)
    places = range(len(names))
    _ranges(panel, [ours[name].values() for name in names], places, along='y')
    labels = [textwrap.shorten(plan.rows[n].label, LABEL, placeholder=' ...') for n in names]
    labels = [f'{plan.rows[n].table}  {label}' for n, label in zip(names, labels, strict=True)]
    panel.set_yticks(places, labels)
    panel.tick_params(axis='y', labelsize=8)
    panel.set_ylim(len(names) - 0.5, -0.5)
    for place in places[1:]:
        if plan.rows[names[place]].table != plan.rows[names[place - 1]].table:
            panel.axhline(place - 0.5, color='lightgrey', linewidth=0.8)
    panel.set_xlabel('ours, % (dot: mean, bar: all seeds)', color='C0')
    above = panel.twiny()
    theirs = [(getattr(plan.rows[n], score), place) for n, place in zip(names, places, strict=True)]
    theirs = [pair for pair in theirs if pair[0] is not None]
    if theirs:
        above.scatter(*zip(*theirs, strict=True), marker='D', facecolors='none', edgecolors='C1')
    above.set_xlabel("the paper's, % (diamond)", color='C1')


def _draw_sweep(
    panel: Any, plan: 'Plan', ours: Mapping[str, Mapping[int, float]], field: str
) -> None:
    """A line over the field that is swept; ours alone: the paper states no figures of its own."""
    value = {n: _value(plan.configs[plan.run_of[n]]['pretrain'], field) for n in plan.rows}
    names = sorted((name for name in plan.rows if ours[name]), key=value.get)
    places = [value[name] for name in names]
    _ranges(panel, [ours[name].values() for name in names], places, along='x')
    means = [sum(ours[name].values()) / len(ours[name]) for name in names]
    panel.plot(places, means, color='C0')
    panel.set(xlabel=SWEPT[field], ylabel='ours, top-1 in % (dot: mean, bar: all seeds)')
    if field == 'num_epochs':
        panel.set_xscale('log', base=2)
        panel.set_xticks(list(value.values()), [f'{epochs:g}' for epochs in value.values()])


def _ranges(panel: Any, groups: Sequence[Any], places: Sequence[float], *, along: str) -> None:
    """A dot at the mean of every group, and a bar from its least to its greatest."""
    for values, place in zip(groups, places, strict=True):
        if not values:
            continue
        mean, ends = sum(values) / len(values), (min(values), max(values))
        line, dot = (ends, (place, place)), ((mean,), (place,))
        for points, style in ((line, '-'), (dot, 'o')):
            panel.plot(*(points if along == 'y' else points[::-1]), style, color='C0')


def _value(config: Any, field: str) -> float:
    for name in field.split('.'):
        config = config[name]
    return config
