"""Draws the results of an ablation beside the paper's: plot.png."""

import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mae_jax.ablation.report import Results, in_paper, percentages
from mae_jax.ablation.suite import Suite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SWEPT = {
    'mask.ratio': 'mask ratio',
    'num_epochs': 'epochs of pretraining',
    'probe_block': 'features after block',
}
LABEL = 42
"""Longest label of a row, in characters."""
Scores = Mapping[str, Collection[float]]
"""Row -> its top-1 in percent, one for each seed that has it."""


def draw_plot(suite: Suite, out: Path, results: Results) -> str:
    """Draws plot.png if matplotlib is installed; returns a line for the user with the files."""
    line = f'table: {out / "table.md"}'
    try:
        import matplotlib
    except ImportError:
        return f'{line}; no plot.png: matplotlib is not installed (pip install matplotlib)'
    matplotlib.use('Agg')
    figure = make_figure(suite, results)
    figure.savefig(out / 'plot.png', dpi=120)
    return f'{line}; plot: {out / "plot.png"}'


def make_figure(suite: Suite, results: Results) -> 'Figure':
    """Draws a panel for each score.

    Rows that set one field to different values are points of a curve over it. Other rows are drawn
    less the default, because our scores and the paper's have different levels.
    """
    from matplotlib.figure import Figure

    field = swept_field(suite)
    size = (9, 3.6) if field else (11, 1.6 + 0.27 * len(suite.rows))
    figure = Figure(figsize=size, layout='constrained')
    panels = figure.subplots(1, len(suite.scores), sharey=not field)
    for panel, (name, score) in zip(panels, suite.scores.items(), strict=True):
        panel.set_title(score.title)
        ours = {n: percentages(results[run], score).values() for n, run in suite.run_of.items()}
        if field:
            _draw_sweep(panel, suite, ours, field)
        else:
            known = name in in_paper(suite)
            paper = {n: getattr(row, name) if known else None for n, row in suite.rows.items()}
            paper = {n: () if top1 is None else (top1,) for n, top1 in paper.items()}
            _draw_rows(panel, suite, ours, paper)
    if field:
        figure.suptitle(suite.title, fontsize='medium')
    else:
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc='outside lower center', ncols=2, frameon=False)
    return figure


def swept_field(suite: Suite) -> str | None:
    """Returns the field that every row sets to a different value, the x-axis of a curve."""
    for field in SWEPT:
        values = {row.changes.get(field) for row in suite.rows.values()}
        if None not in values and len(values) == len(suite.rows) > 1:
            return field
    return None


def less_default(suite: Suite, scores: Scores) -> dict[str, list[float]]:
    """Subtracts the mean of the default from every score.

    The default is the row of the run 'default', or the first row of a suite that does not have it.

    Returns:
      Row -> differences; none at all where the default has no score.
    """
    default = default_row(suite)
    if not scores[default]:
        return {name: [] for name in scores}
    level = sum(scores[default]) / len(scores[default])
    return {name: [value - level for value in values] for name, values in scores.items()}


def default_row(suite: Suite) -> str:
    """Returns the name of the row that the others are compared with."""
    rows = [name for name, run in suite.run_of.items() if run == 'default']
    return (rows or list(suite.rows))[0]


def _draw_rows(panel: Any, suite: Suite, ours: Scores, paper: Scores) -> None:
    """Draws the rows from top to bottom, with a line between two tables of the paper."""
    names = list(suite.rows)
    places = range(len(names))
    panel.axvline(0, color='grey', linewidth=0.8)
    differences = less_default(suite, paper)
    points = [(d, place) for place in places for d in differences[names[place]]]
    if points:
        style = dict(marker='D', facecolors='none', edgecolors='C1', label='the paper')
        panel.scatter(*zip(*points, strict=True), **style)
    differences = less_default(suite, ours)
    _ranges(panel, [differences[name] for name in names], places, along='y')
    panel.plot([], [], 'o-', color='C0', label='ours (dot: mean, bar: all seeds)')
    labels = [textwrap.shorten(suite.rows[n].label, LABEL, placeholder=' ...') for n in names]
    labels = [f'{suite.rows[n].table}  {label}' for n, label in zip(names, labels, strict=True)]
    panel.set_yticks(places, labels)
    panel.tick_params(axis='y', labelsize=8)
    panel.set_ylim(len(names) - 0.5, -0.5)
    for place in places[1:]:
        if suite.rows[names[place]].table != suite.rows[names[place - 1]].table:
            panel.axhline(place - 0.5, color='lightgrey', linewidth=0.8)
    in_runs = 'default' in suite.run_of.values()
    other = 'the default' if in_runs else suite.rows[default_row(suite)].label
    panel.set_xlabel(f'top-1 less that of {other}, percentage points')


def _draw_sweep(panel: Any, suite: Suite, ours: Scores, field: str) -> None:
    """Draws our scores over the field that is swept; the paper's text has no figures for these."""
    first = suite.stage_names[0]
    value = {n: _read_field(suite.configs[suite.run_of[n]][first], field) for n in suite.rows}
    names = sorted((name for name in suite.rows if ours[name]), key=value.get)
    places = [value[name] for name in names]
    _ranges(panel, [ours[name] for name in names], places, along='x')
    means = [sum(ours[name]) / len(ours[name]) for name in names]
    panel.plot(places, means, color='C0')
    panel.set(xlabel=SWEPT[field], ylabel='top-1 in % (dot: mean, bar: all seeds)')
    if field == 'probe_block':
        panel.xaxis.get_major_locator().set_params(integer=True)
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
