"""Sets config fields by their dotted names, and from the text of `--config.field=value`."""

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FieldReference

from mae_jax.errors import UserError, did_you_mean

BOOLS = {'true': True, '1': True, 'false': False, '0': False}


def group_of(config: ConfigDict, field: str) -> ConfigDict | None:
    """Returns the group that holds a field, given by its dotted name; None where there is none."""
    *groups, name = field.split('.')
    for group in groups:
        config = config.get(group) if isinstance(config, ConfigDict) else None
    return config if isinstance(config, ConfigDict) and name in config else None


def field_names(config: ConfigDict, prefix: str = '') -> list[str]:
    """Returns the dotted names of all fields, without those of groups."""
    names = []
    for name in config:
        child = config.get(name)
        is_group = isinstance(child, ConfigDict)
        names += field_names(child, f'{prefix}{name}.') if is_group else [prefix + name]
    return names


def similar_field(field: str, known: Sequence[str]) -> str:
    """Returns ': did you mean ...?' for a field that does not exist, or '' without a near miss."""
    groups = {name: name for name in known}
    names = {name.rpartition('.')[2]: name for name in reversed(known)}
    return did_you_mean(field, groups) or did_you_mean(field.rpartition('.')[2], names)


def read_value(group: ConfigDict, field: str, text: str) -> Any:
    """Converts the text of `--config.field=value` to the type of the field in its group.

    'None' unsets a field that a recipe may leave unset.

    Raises:
      UserError: the text is no value of this type.
    """
    name = field.rpartition('.')[2]
    kind, current = group.get_type(name), group.get(name)
    fields = dict(group.items(preserve_field_references=True))
    if text == 'None' and (current is None or isinstance(fields[name], FieldReference)):
        return None
    if isinstance(current, ConfigDict):
        example = next(iter(field_names(current, f'{field}.')), f'{field}.name')
        raise UserError(f'{field} is a group of fields: set one of them, such as {example}.')
    expected, read = READERS.get(kind, ('a Python literal', ast.literal_eval))
    if kind is tuple and current and all(isinstance(item, str) for item in current):
        expected, read = 'a list of names, such as a,b', _read_names
    if kind is tuple and current and all(isinstance(item, int) for item in current):
        expected, read = f'whole numbers{expected.removeprefix("a number or several")}', _read_whole
    try:
        return read(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise UserError(f'{field}={text} does not work: the value must be {expected}.') from None


def _read_bool(text: str) -> bool:
    if text.lower() not in BOOLS:
        raise ValueError
    return BOOLS[text.lower()]


def _read_numbers(text: str) -> tuple[int | float, ...]:
    """Reads '96', '64, 96', '(64, 96)' or '[0.5, 1]'."""
    value = ast.literal_eval(text.strip())
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    if not all(isinstance(item, int | float) and not isinstance(item, bool) for item in values):
        raise ValueError
    return values


def _read_whole(text: str) -> tuple[int, ...]:
    values = _read_numbers(text)
    if not all(isinstance(item, int) for item in values):
        raise ValueError
    return values


def _read_names(text: str) -> tuple[str, ...]:
    """Reads 'a,b' or "('a', 'b')"."""
    if not text.strip().startswith(('(', '[', '"', "'")):
        return tuple(item.strip() for item in text.split(',') if item.strip())
    value = ast.literal_eval(text.strip())
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    if not all(isinstance(item, str) for item in values):
        raise ValueError
    return values


READERS: dict[type, tuple[str, Callable[[str], Any]]] = {
    str: ('text', str),
    bool: ('True or False', _read_bool),
    int: ('a whole number', int),
    float: ('a number', float),
    tuple: ('a number or several, such as 96 or (64,96)', _read_numbers),
}
"""Type of a field -> what its value must be, and a function that reads its text."""


def set_fields(config: ConfigDict, changes: Mapping[str, Any], origin: str) -> None:
    """Sets fields by their dotted names.

    Raises:
      UserError: there is no such field, or the value has another type. It starts with `origin`.
    """
    for field, value in changes.items():
        group = group_of(config, field)
        if group is None:
            raise UserError(f'{origin}: {unknown_field(field, field_names(config))}')
        try:
            group[field.rpartition('.')[2]] = value
        except TypeError as error:
            raise UserError(f'{origin}: {field}={value!r} does not work ({error}).') from error


def apply_overrides(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Sets every 'field=value' of `--config.field=value`; of two for one field the last one holds.

    Raises:
      UserError: an override names no field or has a value of another type.
    """
    for override in overrides:
        field, _, text = override.partition('=')
        group = group_of(config, field)
        if group is None:
            raise UserError(unknown_field(field, field_names(config)))
        set_fields(config, {field: read_value(group, field, text)}, '--config')


def unknown_field(field: str, known: Sequence[str]) -> str:
    """Returns the sentence about a field that the config does not have."""
    hint = similar_field(field, known) or ' (mae-jax fields lists them).'
    return f'there is no config field {field!r}{hint}'
