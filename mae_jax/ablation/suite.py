"""A suite of ablations: a list of rows, each pretrained, then probed and fine-tuned from there.

Rows with the same config are one run. <out>/<run>/seed<k>/<stage>/ is the work directory of a
stage (`ablation_stage.py`). A stage that is done is not run again; any other goes on from its last
checkpoint. JAX does not start here.
"""

import importlib
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mae_jax.ablation import report as ablation_report
from mae_jax.ablation.stage import (
    LOG,
    Stage,
    has_begun,
    is_done,
    read_result,
    refuse_changed,
    run_stage,
)
from mae_jax.config.fields import group_of, read_value, set_fields
from mae_jax.config.files import load_module, loading
from mae_jax.config.saved import to_json
from mae_jax.errors import UserError

STAGES = ('pretrain', 'linprobe', 'finetune')


class Plan(NamedTuple):
    """What a suite runs."""

    suite: str
    seeds: tuple[int, ...]
    tables: Mapping[str, str]
    """Table of the paper -> its title."""
    rows: dict[str, Any]
    """Name -> `configs.ablations.Row`; the label says what the row means in this suite."""
    run_of: dict[str, str]
    """Row -> run. 'default' is the run of rows that change nothing."""
    configs: dict[str, dict[str, ConfigDict]]
    """Run -> stage -> config, without seed and `init_from`."""

    def stages(self, out: Path, run: str, seed: int) -> list[Stage]:
        """In the order in which they are to be run."""
        root = Path(os.path.abspath(out)) / run / f'seed{seed}'
        found = []
        for name in STAGES:
            config = self.configs[run][name].copy_and_resolve_references()
            config.seed = seed
            if name != 'pretrain':
                config.init_from = str(root / 'pretrain')
            found.append(Stage(run, seed, name, config, root / name))
        return found

    def stages_on_disk(self, out: Path) -> Iterator[Stage]:
        """Those of every seed there is a directory of."""
        for run in self.configs:
            seeds = (path.name.removeprefix('seed') for path in (out / run).glob('seed*'))
            for seed in sorted(int(seed) for seed in seeds if seed.isdecimal()):
                yield from self.stages(out, run, seed)


def make_plan(suite: str, settings: Sequence[str] = ()) -> Plan:
    """Reads a suite.

    Args:
      suite: a file with a `get_suite`, and its argument: 'configs/ablation_suite.py:small'.
      settings: 'field=value' for the stages that have the field, 'finetune.field=value' for one,
        'target_pca.field=value' for the pretraining of a row. They override what the suite says of
        all rows, or of that one; what makes a row itself overrides those for all.

    Raises:
      UserError: the file, a row, a field or a value does not work.
    """
    path, _, argument = suite.partition(':')
    module, ablations = _load(path)
    try:
        found = module.get_suite(*[argument] if argument else [])
    except ValueError as error:
        raise UserError(str(error)) from error
    for row in (*found.rows, *found.changes):
        if row not in ablations.ROWS:
            known = ', '.join(ablations.ROWS)
            raise UserError(f'{suite}: no row {row!r} in configs/ablations.py: choose {known}.')

    base = {'pretrain': ablations.get_config()}
    base |= {stage: make() for stage, make in ablations.FROM_PRETRAINED.items()}
    changes = {stage: dict(found[stage]) for stage in STAGES}
    changes |= {row: dict(found.changes.get(row, {})) for row in found.rows}
    for setting in settings:
        _read_setting(setting, base, changes)
    for stage, config in base.items():
        set_fields(config, changes[stage], f'{suite}: {stage}')

    rows, run_of, configs = {}, {}, {}
    known = {to_json(base['pretrain']): 'default'}
    for name in found.rows:
        row, here = ablations.ROWS[name], changes[name]
        config = ablations.get_config(name)
        set_fields(config, {**changes['pretrain'], **row.changes, **here}, f'{suite}: {name}')
        run_of[name] = known.setdefault(to_json(config), name)
        configs[run_of[name]] = base | {'pretrain': config}
        told = ', '.join(f'{field}={value}' for field, value in here.items())
        rows[name] = row._replace(label=f'{row.label} (here {told})' if told else row.label)
    return Plan(suite, tuple(found.seeds), ablations.TABLES, rows, run_of, configs)


def ablate(plan: Plan, out: Path, rows: Sequence[str] = (), seeds: Sequence[int] = ()) -> int:
    """Runs what is not done yet, and reports after every stage (`ablation_report.py`).

    Args:
      rows, seeds: empty for those of the suite.

    Returns:
      How many stages failed. What would follow from a pretraining that failed is left out.

    Raises:
      UserError: there is no such row, or `out` holds runs of another config.
      SystemExit: a stage was told to stop.
    """
    rows, seeds = rows or tuple(plan.rows), seeds or plan.seeds
    if unknown := [row for row in rows if row not in plan.rows]:
        raise UserError(f'{plan.suite} has no row {unknown[0]!r}: choose {", ".join(plan.rows)}.')
    for stage in plan.stages_on_disk(out):
        refuse_changed(stage)
    runs = list(dict.fromkeys(plan.run_of[row] for row in rows))
    wanted = [stage for seed in seeds for run in runs for stage in plan.stages(out, run, seed)]
    todo = [stage for stage in wanted if not is_done(stage)]
    missing = {stage.removable for stage in todo if stage.name == 'pretrain'}
    for stage in wanted:
        if stage.name != 'pretrain' and stage.directory.parent in missing and has_begun(stage):
            raise UserError(
                f'{stage.directory} has come of a pretraining that is no longer there: remove '
                f'{stage.directory.parent}.'
            )
    print(f'{len(rows)} rows are {len(runs)} runs; seeds: {", ".join(map(str, seeds))}')
    print(f'{len(wanted) - len(todo)} of {len(wanted)} stages are done; logs: {out}/*/*/*/{LOG}')
    failed = 0
    while todo:
        stage, *todo = todo
        print(f'{stage.run} seed {stage.seed} {stage.name} ...', end=' ', flush=True)
        result = run_stage(stage)
        if result['status'] != 'done':
            failed += 1
            if stage.name == 'pretrain':
                todo = [s for s in todo if s.directory.parent != stage.directory.parent]
        print(f'{describe(result)}; {remaining(todo, list(plan.stages_on_disk(out)))}', flush=True)
        ablation_report.write(plan, out, find_results(plan, out))
    ablation_report.write(plan, out, find_results(plan, out))
    print(ablation_report.plot(plan, out, find_results(plan, out)))
    return failed


def find_results(plan: Plan, out: Path) -> dict[str, dict[int, dict[str, dict]]]:
    """Run -> seed -> stage -> result, of all that has ended in `out`."""
    found = {run: {} for run in plan.configs}
    for stage in plan.stages_on_disk(out):
        if result := read_result(stage):
            found[stage.run].setdefault(stage.seed, {})[stage.name] = result
    return found


def describe(result: dict[str, Any]) -> str:
    """What a stage came to, as half a line."""
    took = f'in {timedelta(seconds=round(result["seconds"]))}'
    if result['status'] != 'done':
        told = f'{result["error"].rstrip(".")} (exit status {result["exit_status"]})'
        return f'FAILED {took}: {told}'
    top1 = result.get('top1')
    return f'loss {result["loss"]:.4f} {took}' if top1 is None else f'top-1 {top1:.2%} {took}'


def remaining(todo: Sequence[Stage], ended: Sequence[Stage]) -> str:
    """How much is left, and how long that takes if it goes on as it went."""
    took: dict[str, list[float]] = {}
    for stage in ended:
        result = read_result(stage)
        if result.get('status') == 'done' and not result['resumed']:
            took.setdefault(stage.name, []).append(result['seconds'])
    told = f'{len(todo)} to go'
    if not todo or any(stage.name not in took for stage in todo):
        return told
    return (
        f'{told}, eta {timedelta(seconds=round(sum(statistics.mean(took[s.name]) for s in todo)))}'
    )


def _load(path: str) -> tuple[ModuleType, ModuleType]:
    """The module of a suite's file, and configs/ablations.py."""
    suite = load_module(path, '--suite', 'get_suite', like='configs/ablation_suite.py')
    with loading(f'--suite={path}'):
        return suite, importlib.import_module('configs.ablations')


def _read_setting(text: str, base: Mapping[str, ConfigDict], changes: dict[str, dict]) -> None:
    """Adds 'field=value', '<stage>.field=value' or '<row>.field=value' to the changes of those."""
    field, equals, value = text.partition('=')
    first, _, rest = field.partition('.')
    chosen, field = ((first,), rest) if first in changes else (STAGES, field)
    group = {name: group_of(base.get(name, base['pretrain']), field) for name in chosen}
    chosen = [name for name in chosen if group[name] is not None]
    if not equals or not chosen:
        raise UserError(
            f'--set {text}: there is no config field {field!r} to set (configs/default.py and '
            'configs/finetune.py list them; write e.g. --set dataset.path=/data/images).'
        )
    for name in chosen:
        changes[name][field] = read_value(group[name], field, value)
