"""Loads the recipes and the Python files that users name on the command line."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

from ml_collections import ConfigDict

import mae_jax.configs
from mae_jax.config.fields import apply_overrides
from mae_jax.errors import UserError, did_you_mean
from mae_jax.files.paths import expand_home

RECIPES = list(mae_jax.configs.__path__)[0]
"""The directory of the package's own recipes."""


def load_config(text: str, overrides: Sequence[str] = ()) -> ConfigDict:
    """Loads a recipe by name, such as 'vit_large', or a file, such as 'my/config.py'.

    Args:
      text: the name or path; after a colon the argument of its `get_config`, if it takes one:
        'ablations:mask_block_50'.
      overrides: 'field=value' texts of `--config.field=value`.

    Returns:
      The config, locked: fields can be changed, but none added.

    Raises:
      UserError: there is no such recipe or file, it cannot be loaded or does not take the argument,
        or an override does not work.
    """
    path, _, argument = text.partition(':')
    module = load_module(path, '--config', 'get_config')
    try:
        config = module.get_config(*[argument] if argument else [])
    except (ValueError, TypeError) as error:
        if argument and isinstance(error, TypeError):
            raise UserError(f'--config={text}: {path} takes no argument ({argument!r}).') from error
        raise UserError(f'--config={text}: {error}') from error
    apply_overrides(config, overrides)
    return config.lock()


def load_module(name: str, option: str, function: str) -> ModuleType:
    """Imports a recipe or a Python file that the user names and that must define `function`.

    Args:
      option: the flag that names it, for messages.

    Raises:
      UserError: there is no such file, or it cannot be loaded.
    """
    path = find_file(name, option, function)
    spec = importlib.util.spec_from_file_location(f'{function}_file', path)
    module = importlib.util.module_from_spec(spec)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # for modules of the user's that the file imports
    if importlib.util.find_spec('configs') is None:
        sys.modules['configs'] = mae_jax.configs  # as files name it that were written in a checkout
    with loading(f'{option}={name}'):
        spec.loader.exec_module(module)
    if not hasattr(module, function):
        names = ', '.join(recipes(function))
        raise UserError(f'{option}={name} has no {function}: choose a file that has, or {names}.')
    return module


def find_file(name: str, option: str, function: str) -> str:
    """Returns the path of a Python file, or of the recipe of this name.

    'configs/vit_large.py' is the recipe 'vit_large' where there is no such file.

    Raises:
      UserError: there is neither; the message names the nearest of both.
    """
    expanded = expand_home(name)
    folder, base = os.path.split(expanded)
    stem, suffix = os.path.splitext(base)
    if suffix == '.py' and os.path.isfile(expanded):
        return expanded
    recipe, known = os.path.join(RECIPES, f'{stem}.py'), recipes(function)
    if folder in ('', 'configs') and suffix in ('', '.py') and os.path.isfile(recipe):
        return recipe
    hint = ''
    if os.path.isdir(folder or '.') and suffix:
        files = [each for each in os.listdir(folder or '.') if each.endswith('.py')]
        hint = did_you_mean(base, {each: os.path.join(folder, each) for each in files})
    hint = hint or did_you_mean(stem, known) or f': choose {", ".join(known)}, or a Python file.'
    kind = 'Python file' if suffix or folder else 'recipe'
    raise UserError(f'{option}={name}: there is no such {kind}{hint}')


def recipes(function: str = 'get_config') -> list[str]:
    """Returns the names of the recipes that define this function."""
    names = []
    for file in sorted(os.listdir(RECIPES)):
        stem, suffix = os.path.splitext(file)
        if suffix == '.py' and not stem.startswith('_'):
            with open(os.path.join(RECIPES, file), encoding='utf-8') as content:
                if f'\ndef {function}(' in content.read():
                    names.append(stem)
    return names


@contextlib.contextmanager
def loading(origin: str) -> Iterator[None]:
    """Turns whatever a config file raises while it is loaded into one sentence."""
    try:
        yield
    except Exception as error:
        message = str(error).partition('\n')[0]
        raise UserError(
            f'{origin} cannot be loaded ({type(error).__name__}: {message}): --verbose shows where.'
        ) from error
