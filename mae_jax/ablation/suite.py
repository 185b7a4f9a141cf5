"""Reads a suite: the rows of an ablation, and the config of each of their stages.

Rows with the same config share one run. <out>/<run>/seed<k>/<stage>/ is the work directory of a
stage.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mae_jax.ablation.stage import Stage
from mae_jax.config.fields import field_names, group_of, read_value, set_fields, unknown_field
from mae_jax.config.files import load_module
from mae_jax.config.saved import to_json
from mae_jax.configs import ablations, knn
from mae_jax.errors import UserError, did_you_mean
from mae_jax.files.paths import expand_home

STAGES = ('pretrain', 'linprobe', 'finetune')


class Score(NamedTuple):
    """Describes a column of the table, and a panel of the plot."""

    stage: str
    key: str
    """Of the stage's result."""
    title: str


SCORES = {
    'finetune': Score('finetune', 'top1', 'fine-tune'),
    'linprobe': Score('linprobe', 'top1', 'linear'),
}
PROBES = {'knn': Score('probe', 'knn', 'k-NN'), 'linear': Score('probe', 'linear', 'linear probe')}


class Suite(NamedTuple):
    """Describes what a suite runs."""

    name: str
    """As `--suite` names it: 'configs/ablation_suite.py:small'."""
    seeds: tuple[int, ...]
    tables: Mapping[str, str]
    """Table of the paper -> its title."""
    rows: dict[str, Any]
    """Name -> `configs.ablations.Row`; the label includes what differs from the paper's row."""
    run_of: dict[str, str]
    """Row -> run. 'default' is the run of rows that change nothing."""
    configs: dict[str, dict[str, ConfigDict]]
    """Run -> stage -> config, without the seed and the `init_from` of a pretraining beside it."""
    title: str
    stage_names: tuple[str, ...] = STAGES
    scores: Mapping[str, Score] = SCORES
    """Name, as of a field of `Row` where the paper has figures -> where it is read."""

    def stages(self, out: Path, run: str, seed: int) -> list[Stage]:
        """Returns the stages of a run and seed, in the order in which they have to run."""
        root = Path(os.path.abspath(out)) / run / f'seed{seed}'
        stages = []
        for name in self.stage_names:
            config = self.configs[run][name].copy_and_resolve_references()
            config.seed = seed
            if name != 'pretrain' and 'pretrain' in self.stage_names:
                config.init_from = str(root / 'pretrain')
            stages.append(Stage(run, seed, name, config, root / name))
        return stages

    def stages_on_disk(self, out: Path) -> Iterator[Stage]:
        """Yields the stages of every run and seed that has a directory in `out`."""
        for run in self.configs:
            seeds = (path.name.removeprefix('seed') for path in (out / run).glob('seed*'))
            for seed in sorted(int(seed) for seed in seeds if seed.isdecimal()):
                yield from self.stages(out, run, seed)


def load_suite(name: str, settings: Sequence[str] = ()) -> Suite:
    """Loads a suite from its file and applies settings to it.

    Args:
      name: a file with a `get_suite`, and its argument: 'configs/ablation_suite.py:small'. A suite
        with the field `probe` has a row for each block of an encoder (configs/probe_blocks.py).
      settings: texts of `--config.field=value`: 'field=value' for the stages that have the field,
        'finetune.field=value' for one, 'target_pca.field=value' for the pretraining of a row. They
        override what the suite sets for all rows, or for that one; the changes that define a row
        override those for all rows.

    Raises:
      UserError: the file, a row, a field or a value does not work.
    """
    path, _, argument = name.partition(':')
    module = load_module(path, '--suite', 'get_suite')
    try:
        spec = module.get_suite(*[argument] if argument else [])
    except (ValueError, TypeError) as error:
        if argument and isinstance(error, TypeError):
            raise UserError(f'--suite={name}: {path} takes no argument ({argument!r}).') from error
        raise UserError(str(error)) from error
    if 'probe' in spec:
        return _probes(name, spec, settings)
    for row in (*spec.rows, *spec.changes):
        if row not in ablations.ROWS:
            hint = (
                did_you_mean(row, list(ablations.ROWS)) or f': choose {", ".join(ablations.ROWS)}.'
            )
            raise UserError(f'{name}: no row {row!r} in configs/ablations.py{hint}')

    base = {'pretrain': ablations.get_config()}
    base |= {stage: make() for stage, make in ablations.FROM_PRETRAINED.items()}
    changes = {stage: dict(spec[stage]) for stage in STAGES}
    changes |= {row: dict(spec.changes.get(row, {})) for row in spec.rows}
    for setting in settings:
        _add_setting(setting, base, changes)
    for stage, config in base.items():
        set_fields(config, changes[stage], f'{name}: {stage}')

    rows, run_of, configs = {}, {}, {}
    run_by_config = {to_json(base['pretrain']): 'default'}
    for row_name in spec.rows:
        row, own = ablations.ROWS[row_name], changes[row_name]
        config = ablations.get_config(row_name)
        fields = {**changes['pretrain'], **row.changes, **own}
        set_fields(config, fields, f'{name}: {row_name}')
        run_of[row_name] = run_by_config.setdefault(to_json(config), row_name)
        configs[run_of[row_name]] = base | {'pretrain': config}
        note = ', '.join(f'{field}={value}' for field, value in own.items())
        rows[row_name] = row._replace(label=f'{row.label} (here {note})' if note else row.label)
    title = f'Ablations: {name}'
    return Suite(name, tuple(spec.seeds), ablations.TABLES, rows, run_of, configs, title)


def _probes(name: str, spec: ConfigDict, settings: Sequence[str]) -> Suite:
    """Makes a suite that probes one encoder after each of its blocks, a row for each.

    Raises:
      UserError: `init_from` is not given or has no such model, or a setting does not work.
    """
    base, changes = {'probe': knn.get_config()}, {'probe': dict(spec.probe)}
    for setting in settings:
        _add_setting(setting, base, changes)
    set_fields(base['probe'], changes['probe'], name)
    if not (path := base['probe'].init_from):
        raise UserError(f'{name} probes an encoder: give --config.init_from, its run or its file.')
    if os.path.exists(expand_home(path)):
        base['probe'].init_from = os.path.abspath(expand_home(path))
    rows, configs = {}, {}
    for block in spec.blocks or range(depth_of(path)):
        row = f'block_{block}'
        rows[row] = ablations.Row('', f'block {block}', {'probe_block': block})
        configs[row] = {'probe': base['probe'].copy_and_resolve_references()}
        configs[row]['probe'].probe_block = block
    return Suite(
        name,
        seeds=tuple(spec.seeds),
        tables={'': 'After each block'},
        rows=rows,
        run_of={row: row for row in rows},
        configs=configs,
        title=f'Probes of {path}',
        stage_names=('probe',),
        scores=PROBES,
    )


def depth_of(path: str) -> int:
    """Returns the number of blocks of the encoder of a trained model."""
    from mae_jax.config.model import make_architecture  # imports JAX, and starts no backend
    from mae_jax.interop.read import read_config

    return make_architecture(read_config(path).model)['depth']


def _add_setting(text: str, base: Mapping[str, ConfigDict], changes: dict[str, dict]) -> None:
    """Adds 'field=value', '<stage>.field=value' or '<row>.field=value' to the changes of those.

    Args:
      base: stage -> its config.
      changes: stage or row -> field -> value.
    """
    field, _, value = text.partition('=')
    first, _, rest = field.partition('.')
    chosen, field = ((first,), rest) if first in changes else (tuple(base), field)
    of_stage = {name: base[name if name in base else 'pretrain'] for name in chosen}
    group = {name: group_of(config, field) for name, config in of_stage.items()}
    chosen = [name for name in chosen if group[name] is not None]
    if not chosen:
        known = dict.fromkeys(name for config in base.values() for name in field_names(config))
        raise UserError(unknown_field(field, list(known)))
    for name in chosen:
        changes[name][field] = read_value(group[name], field, value)
