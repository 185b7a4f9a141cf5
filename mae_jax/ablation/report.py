"""Writes the results of an ablation beside the paper's: results.json, table.md and plot.png."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mae_jax.ablation.stage import write_file
from mae_jax.ablation.suite import Suite

SCORES = {'finetune': 'fine-tune', 'linprobe': 'linear'}
SWEPT = {'mask.ratio': 'mask ratio', 'num_epochs': 'epochs of pretraining'}
LABEL = 42
"""Longest label of a row in a plot, in characters."""
Results = Mapping[str, Mapping[int, Mapping[str, Mapping[str, Any]]]]
"""Run -> seed -> stage -> result."""


def write_report(suite: Suite, out: Path, results: Results) -> None:
    """Writes results.json and table.md, replacing earlier ones."""
    rows = {
        name: {
            'table': row.table,
            'label': row.label,
            'run': suite.run_of[name],
            'paper': {score: getattr(row, score) for score in SCORES},
            **{score: percentages(results[suite.run_of[name]], score) for score in SCORES},
        }
        for name, row in suite.rows.items()
    }
    report = {'suite': suite.name, 'rows': rows, 'runs': results}
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / 'results.json', json.dumps(report, indent=2) + '\n')
    write_file(out / 'table.md', format_table(suite, results))


def percentages(
    seeds: Mapping[int, Mapping[str, Mapping[str, Any]]], score: str
) -> dict[int, float]:
    """Returns seed -> top-1 in percent, for the seeds that have it."""
    scores = {seed: stages.get(score, {}).get('top1') for seed, stages in seeds.items()}
    return {seed: 100 * top1 for seed, top1 in scores.items() if top1 is not None}


def format_table(suite: Suite, results: Results) -> str:
    """Formats Markdown: a section for each of the paper's tables, a line for each row."""
    lines = [
        f'# Ablations: {suite.name}',
        '',
        'Top-1 on the held-out images in percent: the mean over seeds (least - greatest).',
    ]
    for key, title in suite.tables.items():
        rows = {name: row for name, row in suite.rows.items() if row.table == key}
        if not rows:
            continue
        kind = f'Table {key}: ' if key.startswith('1') else f'{key}: ' if key else ''
        lines += ['', f'## {kind}{title.lower() if kind else title}', '']
        lines += ['| row | fine-tune | linear | seeds | paper: fine-tune | paper: linear |']
        lines += ['|---|---|---|---|---|---|']
        for name, row in rows.items():
            seeds = results[suite.run_of[name]]
            ours = [format_cell(seeds, score) for score in SCORES]
            paper = [_format_paper(getattr(row, score)) for score in SCORES]
            count = len({seed for score in SCORES for seed in percentages(seeds, score)})
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


def format_cell(seeds: Mapping[int, Mapping[str, Mapping[str, Any]]], score: str) -> str:
    """Formats a score of a row: the mean over seeds, and their range.

    Such as '51.2 (50.9 - 51.6)'; 'failed' if a stage that it needs has failed; '...' before that.
    """
    values = list(percentages(seeds, score).values())
    failed = sum(
        stages.get(stage, {}).get('status') == 'failed'
        for stages in seeds.values()
        for stage in ('pretrain', score)
    )
    if not values:
        return 'failed' if failed else '...'
    text = f'{sum(values) / len(values):.1f}'
    if len(values) > 1:
        text += f' ({min(values):.1f} - {max(values):.1f})'
    return f'{text}, {failed} failed' if failed else text


def _format_paper(top1: float | None) -> str:
    return '' if top1 is None else f'{top1:.1f}'


def draw_plot(suite: Suite, out: Path, results: Results) -> str:
    """Draws plot.png if matplotlib is installed; returns a line for the user with the files."""
    line = f'table: {out / "table.md"}'
    try:
        import matplotlib
    except ImportError:
        return f'{line}; no plot.png: matplotlib is not installed (pip install matplotlib)'
    matplotlib.use('Agg')
    from matplotlib import pyplot

    field = swept_field(suite)
    size = (9, 3.6) if field else (11, 1.6 + 0.27 * len(suite.rows))
    figure, panels = pyplot.subplots(1, 2, figsize=size, sharey=not field, layout='constrained')
    for panel, (score, title) in zip(panels, SCORES.items(), strict=True):
        panel.set_title(title)
        ours = {name: percentages(results[run], score) for name, run in suite.run_of.items()}
        if field:
            _draw_sweep(panel, suite, ours, field)
        else:
            _draw_rows(panel, suite, ours, score)
    figure.savefig(out / 'plot.png', dpi=120)
    pyplot.close(figure)
    return f'{line}; plot: {out / "plot.png"}'


def swept_field(suite: Suite) -> str | None:
    """Returns the field that every row sets to a different value, the x-axis of a curve."""
    for field in SWEPT:
        values = {row.changes.get(field) for row in suite.rows.values()}
        if None not in values and len(values) == len(suite.rows) > 1:
            return field
    return None


def _draw_rows(
    panel: Any, suite: Suite, ours: Mapping[str, Mapping[int, float]], score: str
) -> None:
    """Draws our scores on the lower axis and the paper's on the upper: compare the orders only."""
    names = list(suite.rows)
    places = range(len(names))
    _ranges(panel, [ours[name].values() for name in names], places, along='y')
    labels = [textwrap.shorten(suite.rows[n].label, LABEL, placeholder=' ...') for n in names]
    labels = [f'{suite.rows[n].table}  {label}' for n, label in zip(names, labels, strict=True)]
    panel.set_yticks(places, labels)
    panel.tick_params(axis='y', labelsize=8)
    panel.set_ylim(len(names) - 0.5, -0.5)
    for place in places[1:]:
        if suite.rows[names[place]].table != suite.rows[names[place - 1]].table:
            panel.axhline(place - 0.5, color='lightgrey', linewidth=0.8)
    panel.set_xlabel('ours, % (dot: mean, bar: all seeds)', color='C0')
    above = panel.twiny()
    paper = [(getattr(suite.rows[n], score), place) for n, place in zip(names, places, strict=True)]
    paper = [pair for pair in paper if pair[0] is not None]
    if paper:
        above.scatter(*zip(*paper, strict=True), marker='D', facecolors='none', edgecolors='C1')
    above.set_xlabel("the paper's, % (diamond)", color='C1')


def _draw_sweep(
    panel: Any, suite: Suite, ours: Mapping[str, Mapping[int, float]], field: str
) -> None:
    """Draws our scores over the field that is swept; the paper's text has no figures for these."""
    value = {n: _read_field(suite.configs[suite.run_of[n]]['pretrain'], field) for n in suite.rows}
    names = sorted((name for name in suite.rows if ours[name]), key=value.get)
    places = [value[name] for name in names]
    _ranges(panel, [ours[name].values() for name in names], places, along='x')
    means = [sum(ours[name].values()) / len(ours[name]) for name in names]
    panel.plot(places, means, color='C0')
    panel.set(xlabel=SWEPT[field], ylabel='ours, top-1 in % (dot: mean, bar: all seeds)')
    if field == 'num_epochs':
        panel.set_xscale('log', base=2)
        panel.set_xticks(list(value.values()), [f'{epochs:g}' for epochs in value.values()])


def _ranges(panel: Any, groups: Sequence[Any], places: Sequence[float], *, along: str) -> None:
    """Draws a dot at the mean of every group of scores, and a bar from least to greatest."""
    for values, place in zip(groups, places, strict=True):
        if not values:
            continue
        mean, ends = sum(values) / len(values), (min(values), max(values))
        line, dot = (ends, (place, place)), ((mean,), (place,))
        for points, style in ((line, '-'), (dot, 'o')):
            panel.plot(*(points if along == 'y' else points[::-1]), style, color='C0')


def _read_field(config: Any, field: str) -> float:
    """Reads a field by its dotted name."""
    for name in field.split('.'):
        config = config[name]
    return config
