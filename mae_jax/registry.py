"""Implementations that a config field chooses by name, the user's own among them."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mae_jax.errors import UserError

FORM = "give 'module:function', a function on the Python path"


class Registry:
    """Objects by name: those of the package, those added by `register`, and 'module:function'.

    Attributes:
      kind: what the objects are, for messages: 'mask strategy'.
      field: the config field that holds the name: 'mask.strategy'.
    """

    def __init__(self, kind: str, field: str, entries: Mapping[str, Any]):
        """Makes a registry of `entries`.

        A value that is a string, 'module:attribute', is imported when it is first looked up.
        """
        self.kind, self.field = kind, field
        self._entries = dict(entries)
        self._builtin = frozenset(entries)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def get(self, name: str, *, may_import: bool = True) -> Any:
        """Returns the object of this name.

        Args:
          name: a registered name, or 'module:function', which is imported and then registered.
          may_import: False for a name from a file, such as the config beside a checkpoint: files
            must not decide what code is run.

        Raises:
          UserError: the name is unknown, or its module cannot be imported, or may not be.
        """
        if name in self:
            if isinstance(self._entries[name], str):
                self._entries[name] = import_function(self._entries[name], self.field)
            return self._entries[name]
        if not is_path(name):
            names = ' | '.join(self)
            raise UserError(f'{self.field}={name!r} is unknown: use {names}, or module:function.')
        if not may_import:
            raise UserError(
                f'{self.field}={name!r} is a {self.kind} that is not registered, and no file '
                'decides what is imported: register it under this name (docs/extending.md).'
            )
        self._entries[name] = import_function(name, self.field)
        return self._entries[name]

    def register(self, name: str, value: Any = None) -> Any:
        """Adds an object under a name, and returns it; a decorator where no object is given.

        Raises:
          ValueError: the name is one of the package's own.
        """
        if name in self._builtin:
            raise ValueError(f'{name!r} is a {self.kind} of mae_jax: choose another name.')
        if value is None:
            return lambda value: self.register(name, value)
        self._entries[name] = value
        return value


def is_path(name: object) -> bool:
    """Returns whether a name has the form 'module:function'."""
    return isinstance(name, str) and all(name.partition(':'))


def import_function(path: str, field: str) -> Callable:
    """Imports 'module:function'; `field` is the config field that holds it, for messages.

    Raises:
      UserError: the module does not exist, or has no such function.
    """
    module, _, name = path.partition(':')
    try:
        function = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError, TypeError) as error:  # the last two: no name of a module
        raise UserError(f'{field}={path!r} cannot be imported ({error}): {FORM}.') from error
    if not callable(function):
        raise UserError(f'{field}={path!r}: {module} has no function {name!r}: {FORM}.')
    return function
