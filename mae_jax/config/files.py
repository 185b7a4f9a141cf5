"""Loads the Python files that users name on the command line: configs and suites."""

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from types import ModuleType

from ml_collections import ConfigDict

from mae_jax.errors import UserError


def load_config(text: str) -> ConfigDict:
    """Loads `--config=<file>[:<argument>]`, such as 'configs/ablations.py:mask_block_50'.

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
    """Imports a Python file that the user names with `option` and that must define `function`.

    Raises:
      UserError: it is no such file; the message names `like` as an example.
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
    """Turns whatever a config file raises while it is loaded into one sentence."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f'{origin} cannot be loaded ({type(error).__name__}: {error}): start in the '
            'directory that holds configs/, and see --verbose.'
        ) from error
