"""Writes the results of an ablation beside the paper's: results.json and table.md."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mae_jax.ablation.stage import write_file
from mae_jax.ablation.suite import Score, Suite
from mae_jax.configs.ablations import Row

Results = Mapping[str, Mapping[int, Mapping[str, Mapping[str, Any]]]]
"""Run -> seed -> stage -> result."""


def write_report(suite: Suite, out: Path, results: Results) -> None:
    """Writes results.json and table.md, replacing earlier ones."""
    rows = {
        name: {
            'table': row.table,
            'label': row.label,
            'run': suite.run_of[name],
            'paper': {name: getattr(row, name) for name in in_paper(suite)},
            **{key: percentages(results[suite.run_of[name]], s) for key, s in suite.scores.items()},
        }
        for name, row in suite.rows.items()
    }
    report = {'suite': suite.name, 'rows': rows, 'runs': results}
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / 'results.json', json.dumps(report, indent=2) + '\n')
    write_file(out / 'table.md', format_table(suite, results))


def percentages(
    seeds: Mapping[int, Mapping[str, Mapping[str, Any]]], score: Score
) -> dict[int, float]:
    """Returns seed -> accuracy in percent, for the seeds that have it."""
    scores = {seed: stages.get(score.stage, {}).get(score.key) for seed, stages in seeds.items()}
    return {seed: 100 * share for seed, share in scores.items() if share is not None}


def in_paper(suite: Suite) -> list[str]:
    """Returns the names of the scores for which the paper may have figures."""
    return [name for name in suite.scores if name in Row._fields]


def format_table(suite: Suite, results: Results) -> str:
    """Formats Markdown: a section for each of the paper's tables, a line for each row."""
    scores, in_papers = suite.scores, in_paper(suite)
    titles = [score.title for score in scores.values()]
    head = ['row', *titles, 'seeds', *(f'paper: {scores[name].title}' for name in in_papers)]
    lines = [
        f'# {suite.title}',
        '',
        'Top-1 on the held-out images in percent: the mean over seeds (least - greatest).',
    ]
    for key, title in suite.tables.items():
        rows = {name: row for name, row in suite.rows.items() if row.table == key}
        if not rows:
            continue
        kind = f'Table {key}: ' if key.startswith('1') else f'{key}: ' if key else ''
        lines += ['', f'## {kind}{title.lower() if kind else title}', '']
        lines += [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
        for name, row in rows.items():
            seeds = results[suite.run_of[name]]
            ours = [format_cell(seeds, score) for score in scores.values()]
            paper = [_format_paper(getattr(row, name)) for name in in_papers]
            count = len({seed for s in scores.values() for seed in percentages(seeds, s)})
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


def format_cell(seeds: Mapping[int, Mapping[str, Mapping[str, Any]]], score: Score) -> str:
    """Formats a score of a row: the mean over seeds, and their range.

    Such as '51.2 (50.9 - 51.6)'; 'failed' if a stage that it needs has failed; '...' before that.
    """
    values = list(percentages(seeds, score).values())
    failed = sum(
        stages.get(stage, {}).get('status') == 'failed'
        for stages in seeds.values()
        for stage in ('pretrain', score.stage)
    )
    if not values:
        return 'failed' if failed else '...'
    text = f'{sum(values) / len(values):.1f}'
    if len(values) > 1:
        text += f' ({min(values):.1f} - {max(values):.1f})'
    return f'{text}, {failed} failed' if failed else text


def _format_paper(top1: float | None) -> str:
    return '' if top1 is None else f'{top1:.1f}'
