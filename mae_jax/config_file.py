"""Config files and `--set field=value`, as the commands of `mae-jax` take them."""

import ast
import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from mae_jax.errors import UserError


def load_config(text: str) -> ConfigDict:
    """What `--config=<file>[:<argument>]` names, such as 'configs/ablations.py:mask_block_50'.

    Raises:
      UserError: there is no such file, it cannot be loaded, or does not take the argument.
    """
    path, _, argument = text.partition(':')
    module = load_module(path, '--config', 'get_config', like='configs/vit_huge.py')
    try:
        return module.get_config(*[argument] if argument else [])
    except (ValueError, TypeError) as error:
        raise UserError(f'--config={text}: {error}') from error


def load_module(path: str, option: str, function: str, *, like: str) -> ModuleType:
    """The module of a Python file that the user names with `option`, and that has `function`.

    Raises:
      UserError: it is none; `like` is one.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # where `configs` is
    spec = importlib.util.spec_from_file_location(f'{function}_file', path)
    if not os.path.isfile(path) or spec is None:
        raise UserError(f'{option}={path} is no Python file: {like} is one.')
    module = importlib.util.module_from_spec(spec)
    with loading(f'{option}={path}'):
        spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise UserError(f'{option}={path} has no {function}: {like} has one.')
    return module


@contextlib.contextmanager
def loading(origin: str) -> Iterator[None]:
    """Within it, whatever a config file raises is told in one sentence."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f'{origin} cannot be loaded ({type(error).__name__}: {error}): start in the '
            'directory that holds configs/, and see --verbose.'
        ) from error


def group_of(config: ConfigDict, field: str) -> ConfigDict | None:
    """What holds a field, given by its dotted name; None where nothing does."""
    *groups, name = field.split('.')
    for group in groups:
        config = config.get(group) if isinstance(config, ConfigDict) else None
    return config if isinstance(config, ConfigDict) and name in config else None


def read_value(group: ConfigDict, field: str, text: str) -> Any:
    """What 'value' of `--set field=value` means in this group.

    Raises:
      UserError: the field takes no text, and this is nothing else.
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
      UserError: there is no such field, or the value is not of its type; it starts with `origin`.
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
    """Sets every 'field=value' of `--set`; a UserError where one does not work."""
    for setting in settings:
        field, equals, text = setting.partition('=')
        group = group_of(config, field)
        if not equals or group is None:
            raise UserError(
                f'--set {setting}: there is no config field {field!r} to set '
                '(configs/default.py lists them; write e.g. --set mesh.fsdp=8).'
            )
        set_fields(config, {field: read_value(group, field, text)}, f'--set {setting}')
