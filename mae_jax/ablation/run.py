"""Runs the stages of a suite that are not done yet, and reports after each.

A stage that is done is not run again; any other continues from its last checkpoint.
"""

import statistics
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from mae_jax.ablation.plot import draw_plot
from mae_jax.ablation.report import write_report
from mae_jax.ablation.stage import (
    LOG,
    Stage,
    has_begun,
    is_done,
    read_result,
    refuse_changed,
    run_stage,
)
from mae_jax.ablation.suite import PROBES, Suite
from mae_jax.errors import UserError, did_you_mean


def run_suite(suite: Suite, out: Path, rows: Sequence[str] = (), seeds: Sequence[int] = ()) -> int:
    """Runs what is not done yet of a suite in the directory `out`.

    Args:
      rows, seeds: the rows and seeds to run; empty for those of the suite.

    Returns:
      The number of stages that failed. The stages that follow a failed pretraining are left out.

    Raises:
      UserError: there is no such row, or `out` holds runs of another config.
      SystemExit: a stage was stopped by a signal.
    """
    rows, seeds = rows or tuple(suite.rows), seeds or suite.seeds
    if unknown := [row for row in rows if row not in suite.rows]:
        hint = did_you_mean(unknown[0], list(suite.rows)) or f': choose {", ".join(suite.rows)}.'
        raise UserError(f'{suite.name} has no row {unknown[0]!r}{hint}')
    for stage in suite.stages_on_disk(out):
        refuse_changed(stage)
    runs = list(dict.fromkeys(suite.run_of[row] for row in rows))
    stages = [stage for seed in seeds for run in runs for stage in suite.stages(out, run, seed)]
    todo = [stage for stage in stages if not is_done(stage)]
    _refuse_orphans(stages, todo)
    print(f'{len(rows)} rows are {len(runs)} runs; seeds: {", ".join(map(str, seeds))}')
    print(f'{len(stages) - len(todo)} of {len(stages)} stages are done; logs: {out}/*/*/*/{LOG}')
    failed = 0
    while todo:
        stage, *todo = todo
        print(f'{stage.run} seed {stage.seed} {stage.name} ...', end=' ', flush=True)
        result = run_stage(stage)
        if result['status'] != 'done':
            failed += 1
            if stage.name == 'pretrain':
                todo = [s for s in todo if s.directory.parent != stage.directory.parent]
        ended = list(suite.stages_on_disk(out))
        print(f'{format_result(result)}; {format_remaining(todo, ended)}', flush=True)
        write_report(suite, out, read_results(suite, out))
    write_report(suite, out, read_results(suite, out))
    print(draw_plot(suite, out, read_results(suite, out)))
    return failed


def _refuse_orphans(stages: Sequence[Stage], todo: Sequence[Stage]) -> None:
    """Raises a UserError if a stage started from a pretraining that has yet to run."""
    missing = {stage.directory.parent for stage in todo if stage.name == 'pretrain'}
    for stage in stages:
        if stage.name != 'pretrain' and stage.directory.parent in missing and has_begun(stage):
            raise UserError(
                f'{stage.directory} started from a pretraining that no longer exists: remove '
                f'{stage.directory.parent}.'
            )


def read_results(suite: Suite, out: Path) -> dict[str, dict[int, dict[str, dict]]]:
    """Reads the results of all stages that have ended in `out`: run -> seed -> stage -> result."""
    results = {run: {} for run in suite.configs}
    for stage in suite.stages_on_disk(out):
        if result := read_result(stage):
            results[stage.run].setdefault(stage.seed, {})[stage.name] = result
    return results


def format_result(result: dict[str, Any]) -> str:
    """Formats the result of a stage: 'top-1 51.20% in 0:10:00', 'loss 0.4215 in ...', 'FAILED'."""
    duration = f'in {timedelta(seconds=round(result["seconds"]))}'
    if result['status'] != 'done':
        error = f'{result["error"].rstrip(".")} (exit status {result["exit_status"]})'
        return f'FAILED {duration}: {error}'
    if 'loss' in result:
        return f'loss {result["loss"]:.4f} {duration}'
    titles = {'top1': 'top-1', **{score.key: score.title for score in PROBES.values()}}
    scores = [f'{title} {result[key]:.2%}' for key, title in titles.items() if key in result]
    return f'{", ".join(scores)} {duration}'


def format_remaining(todo: Sequence[Stage], ended: Sequence[Stage]) -> str:
    """Formats how many stages are left, with the time that they take at the speed until now.

    The time is left out as long as a stage of the same name has not ended.
    """
    seconds: dict[str, list[float]] = {}
    for stage in ended:
        result = read_result(stage)
        if result.get('status') == 'done' and not result['resumed']:
            seconds.setdefault(stage.name, []).append(result['seconds'])
    count = f'{len(todo)} to go'
    if not todo or any(stage.name not in seconds for stage in todo):
        return count
    total = sum(statistics.mean(seconds[stage.name]) for stage in todo)
    return f'{count}, eta {timedelta(seconds=round(total))}'
