"""The work directory: one run at a time, and always the same run."""

import json
import os
from typing import Any

from etils import epath
from ml_collections import ConfigDict, config_dict

from mae_jax.errors import UserError
from mae_jax.files.limits import MAX_JSON_BYTES, parse_json, read_bytes, reason


def load_config(path: str | os.PathLike) -> ConfigDict:
    """The config of a work directory, or of one of its checkpoints (<workdir>/checkpoints/<step>).

    Sequences come back as tuples, and what was unset as None.

    Raises:
      UserError: there is no config.json, or it cannot be read.
    """
    directory = epath.Path(path)
    for candidate in (directory, directory.parent, directory.parent.parent):
        file = candidate / 'config.json'
        if file.exists():
            try:
                return from_json(read_bytes(file, MAX_JSON_BYTES))
            except (OSError, ValueError) as error:
                raise UserError(
                    f'{file} is damaged ({reason(error)}): restore it from a copy, or '
                    'choose another --workdir.'
                ) from error
    raise UserError(f'{path} is no work directory: there is no config.json in it.')


def to_json(config: ConfigDict) -> str:
    """As readable text that is the same for equal configs; unset fields are null."""

    def plain(value: Any) -> Any:
        if isinstance(value, config_dict.FieldReference):
            return value.get()
        raise TypeError(f'{value!r} cannot be kept in config.json')

    return json.dumps(config.to_dict(), indent=2, sort_keys=True, default=plain) + '\n'


def from_json(text: str | bytes) -> ConfigDict:
    """Undoes `to_json`, but that sequences come back as tuples.

    The text may be somebody else's: what comes back are numbers, texts, tuples and groups of them,
    under any names. Nothing is imported that a text names.

    Raises:
      ValueError: it is no JSON of named fields, or these are no names of fields.
    """
    content = parse_json(text)
    if not isinstance(content, dict):
        raise ValueError('it holds no named fields')
    try:
        return ConfigDict(_tuples(content))
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError('it is no config') from error


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
