"""Looks up what users may add to: tasks, data sources, mask strategies, targets, loggers."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

from mae_jax.errors import UserError


class Registry:
    """Named objects of one kind, and anybody's own as 'module:attribute'.

    Args:
      kind: what is looked up, for messages ('mask strategy').
      field: the config field that holds the name ('mask.strategy').
      entries: name -> object, or its 'module:attribute', which is imported on first use.
    """

    def __init__(self, kind: str, field: str, entries: Mapping[str, Any]):
        self.kind = kind
        self.field = field
        self._entries = dict(entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def names(self) -> tuple[str, ...]:
        """Returns the registered names, in the order of their registration."""
        return tuple(self._entries)

    def register(self, name: str, entry: Any = None) -> Any:
        """Adds an object under a name; without an object, decorates one.

        Raises:
          ValueError: the name is taken.
        """
        if entry is None:
            return lambda decorated: self.register(name, decorated)
        if name in self._entries:
            raise ValueError(f'a {self.kind} named {name!r} is registered already')
        self._entries[name] = entry
        return entry

    def get(self, name: str) -> Any:
        """Returns what a name, or 'module:attribute', stands for.

        Raises:
          UserError: neither is there.
        """
        entry = self._entries.get(name)
        if entry is None and not (isinstance(name, str) and ':' in name):
            known = ', '.join(repr(known) for known in self._entries)
            raise UserError(
                f'{self.field}={name!r} is unknown: choose {known}, or give your own as '
                "'module:function'."
            )
        if entry is None or isinstance(entry, str):
            return self._import(name, entry or name)
        return entry

    def _import(self, name: str, path: str) -> Callable:
        module, _, attribute = path.partition(':')
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            if name in self._entries:
                raise  # a fault of the package, or a dependency that is missing
            raise UserError(
                f"{self.field}={name!r} cannot be imported ({error}): give 'module:function', a "
                f'{self.kind} on the Python path.'
            ) from error
