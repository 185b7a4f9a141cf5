"""The config of a run from its work directory alone, without its config file."""

import ast
import os
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from mae_jax.config.changes import ADDED
from mae_jax.config.saved import load_config
from mae_jax.errors import UserError
from mae_jax.experiment.inherit import names_code
from mae_jax.experiment.workdir import has_begun

CODE = ('task', 'dataset.name', 'mask.strategy', 'target.name', 'target.tokenizer')
"""Fields that may name a function to import."""


def saved_config(workdir: str | os.PathLike, settings: Sequence[str] = ()) -> ConfigDict:
    """Returns the config that a run in a work directory was started with last.

    Args:
      workdir: of a run that has saved a checkpoint.
      settings: changes as texts, 'field=value'.

    Returns:
      A config for `run`. Fields that its version did not have have the values it ran with.

    Raises:
      UserError: there is no such run, a field does not exist, or config.json, which may be
        another's, names code that is to be imported.
    """
    if not has_begun(workdir):
        raise UserError(f'{workdir} is not the work directory of a run with a checkpoint.')
    config = load_config(workdir)
    for field, value in ADDED.items():
        name, group = _place(config, field)
        if group is not None and name not in group:
            group[name] = value
    given = {}
    for setting in settings:
        field, _, text = setting.partition('=')
        name, group = _place(config, field)
        if group is None or name not in group:
            raise UserError(f'{setting}: the run in {workdir} has no config field {field!r}.')
        with config.ignore_type():  # what is unset has no type in config.json
            given[field] = group[name] = _read(text, group[name])
    for field in CODE:
        name, group = _place(config, field)
        value = group and group.get(name)
        if field not in given and names_code(value):
            raise UserError(
                f'the config.json of {workdir} names code to import ({field}={value!r}): if you '
                f'trust it, give {field}={value} as an option, or the config file of the run.'
            )
    return config


def _place(config: ConfigDict, field: str) -> tuple[str, ConfigDict | None]:
    """Returns the last name of a dotted one, and the group that it belongs to, if there is one."""
    *groups, name = field.split('.')
    for each in groups:
        config = config.get(each) if isinstance(config, ConfigDict) else None
    return name, config if isinstance(config, ConfigDict) else None


def _read(text: str, old: Any) -> Any:
    """Converts the text of a value; what is no number, tuple, bool or None is a string."""
    if isinstance(old, str):
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
