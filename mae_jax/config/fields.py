"""Sets config fields by their dotted names, and from the text of `--set field=value`."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mae_jax.errors import UserError


def group_of(config: ConfigDict, field: str) -> ConfigDict | None:
    """Returns the group that holds a field, given by its dotted name; None where there is none."""
    *groups, name = field.split('.')
    for group in groups:
        config = config.get(group) if isinstance(config, ConfigDict) else None
    return config if isinstance(config, ConfigDict) and name in config else None


def read_value(group: ConfigDict, field: str, text: str) -> Any:
    """Converts the text of `--set field=value` to the type of the field in its group.

    Raises:
      UserError: the field takes no text, and this is neither number, tuple nor bool.
    """
    if group.get_type(field.rpartition('.')[2]) is str:
        return text
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise UserError(
            f'--set {field}={text}: {text!r} is no number, tuple, True or False.'
        ) from None


def set_fields(config: ConfigDict, changes: Mapping[str, Any], origin: str) -> None:
    """Sets fields by their dotted names.

    Raises:
      UserError: there is no such field, or the value has another type. It starts with `origin`.
    """
    for field, value in changes.items():
        group = group_of(config, field)
        if group is None:
            raise UserError(
                f'{origin}: there is no config field {field!r} (see configs/default.py).'
            )
        try:
            group[field.rpartition('.')[2]] = value
        except TypeError as error:
            raise UserError(f'{origin}: {field}={value!r} does not work ({error}).') from error


def apply_settings(config: ConfigDict, settings: Sequence[str]) -> None:
    """Sets every 'field=value' of `--set`.

    Raises:
      UserError: a setting names no field or has a value of another type.
    """
    for setting in settings:
        field, equals, text = setting.partition('=')
        group = group_of(config, field)
        if not equals or group is None:
            raise UserError(
                f'--set {setting}: there is no config field {field!r} to set '
                '(configs/default.py lists them; write e.g. --set mesh.fsdp=8).'
            )
        set_fields(config, {field: read_value(group, field, text)}, f'--set {setting}')
