"""Writes configs to JSON and reads them back: config.json of a work directory, headers of files."""

import json
import os
from typing import Any

from ml_collections import ConfigDict, config_dict

from mae_jax.errors import UserError
from mae_jax.files.buckets import as_path, service_errors
from mae_jax.files.limits import MAX_JSON_BYTES, parse_json, read_bytes, reason


def load_config(path: str | os.PathLike) -> ConfigDict:
    """Reads the config of a work directory, or of a checkpoint (<workdir>/checkpoints/<step>).

    Sequences become tuples, and unset fields None.

    Raises:
      UserError: there is no config.json, or it cannot be read.
    """
    directory = as_path(path)
    for candidate in (directory, directory.parent, directory.parent.parent):
        file = candidate / 'config.json'
        with service_errors(file):
            exists = file.exists()
        if exists:
            try:
                return from_json(read_bytes(file, MAX_JSON_BYTES))
            except (OSError, ValueError) as error:
                raise UserError(
                    f'{file} is damaged ({reason(error)}): restore it from a copy, or '
                    'choose another --workdir.'
                ) from error
    raise UserError(f'{path} is no work directory: there is no config.json in it.')


def to_json(config: ConfigDict) -> str:
    """Returns indented JSON, the same for equal configs; unset fields are null."""

    def plain(value: Any) -> Any:
        if isinstance(value, config_dict.FieldReference):
            return value.get()
        raise TypeError(f'{value!r} cannot be kept in config.json')

    return json.dumps(config.to_dict(), indent=2, sort_keys=True, default=plain) + '\n'


def from_json(text: str | bytes) -> ConfigDict:
    """Inverts `to_json`, except that sequences become tuples.

    The text may come from somebody else: the result holds only numbers, strings, tuples and groups
    of them, under any names. Nothing that a text names is imported.

    Raises:
      ValueError: it is no JSON of named fields, or these are no names of fields.
    """
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError('it holds no named fields')
    try:
        return ConfigDict(as_tuples(content))
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError('it is no config') from error


def as_tuples(value: Any) -> Any:
    """Turns all sequences in nested dictionaries into tuples."""
    if isinstance(value, dict):
        return {key: as_tuples(item) for key, item in value.items()}
    return tuple(as_tuples(item) for item in value) if isinstance(value, list | tuple) else value
