"""The work directory: one run at a time, and always the same run."""

import contextlib
import fnmatch
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from etils import epath
from ml_collections import ConfigDict, config_dict

from mae_jax.errors import UserError
from mae_jax.limits import MAX_JSON_BYTES, parse_json, read_bytes, reason

try:
    import fcntl
except ImportError:  # not a POSIX system: runs are not kept apart there
    fcntl = None

SHARED_WITHIN_S = 60
"""Network file systems remember for so long that a file was not there."""

MAY_CHANGE = (
    # How a run is computed, watched and stored. What is not listed makes the run itself.
    'deterministic',
    'step_timeout_s',
    'optimizer.skip_nonfinite',  # until one is skipped the run is the same
    'model.remat',
    'model.scan',
    'model.attention',
    'dataset.path',  # the data set's identity is checked against the checkpoint
    'dataset.threads',
    'dataset.workers',
    'dataset.prefetch',
    'dataset.timeout_s',
    'dataset.max_bad_share',
    'dataset.eval_split',
    'dataset.eval_crop_share',
    'optimizer.accumulate',
    'mesh.*',
    'log_every_steps',
    'eval_*',
    'image_every_steps',
    'checkpoint_every_steps',
    'keep_*',
    'probe_at_end',
    'online_probe.*',
    'per_class',
)

ADDED = {
    'model.encoder_mask_tokens': False,
    'target.loss_on': 'hidden',
    'target.components': 96,
    'target.sample': 4096,
    'target.tokenizer': None,
    'target.codes': 8192,
    'step_timeout_s': 1800.0,
    'optimizer.skip_nonfinite': 0,
    'model.attention': 'plain',
    'dataset.repeats': 1,
    'dataset.resize': 'host',
    'dataset.canvas': 384,
}
"""Fields that the configs of earlier versions lack, and what those runs did."""


@contextlib.contextmanager
def claim(workdir: str | os.PathLike) -> Iterator[None]:
    """Makes a directory, and holds it; the hold ends with the process at the latest.

    Where the file system has no locks, goes on without.

    Raises:
      UserError: another process holds the directory, or it cannot be made.
    """
    directory = epath.Path(workdir)
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if fcntl is not None and '://' not in os.fspath(directory):
                # Opened to append: the process number of whoever holds it is inside.
                file = stack.enter_context(open(directory / '.lock', 'a+'))
                _lock(file, directory)
        except OSError as error:
            raise UserError(
                f'{directory} cannot be written ({error.strerror}): choose another directory, or '
                'make it writable.'
            ) from error
        yield


def _lock(file: Any, directory: epath.Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or 'unknown'
        raise UserError(
            f'{directory} is held by another process ({holder}): wait for it, stop it, or choose '
            'another directory.'
        ) from error
    except OSError:
        return  # no locks on this file system
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()


def check_config(
    workdir: str | os.PathLike, config: ConfigDict, *, begun: bool = True
) -> list[str]:
    """Writes config.json into a new work directory; holds later starts to it once it has `begun`.

    Returns:
      What differs from the last start, one line a field, where it may (`MAY_CHANGE`).

    Raises:
      UserError: what differs makes another run; or config.json cannot be read or written.
    """
    path = epath.Path(workdir) / 'config.json'
    changes = []
    if begun and path.exists():
        before, now = _flat(load_config(workdir).to_dict()), _flat(json.loads(to_json(config)))
        before = {field: value for field, value in ADDED.items() if field in now} | before
        missing = object()
        for field in sorted(before.keys() | now.keys()):
            old, new = before.get(field, missing), now.get(field, missing)
            if old != new and field != 'mode':  # trained or evaluated, it is the same run
                told = [('unset' if x in (missing, None) else repr(x)) for x in (old, new)]
                changes.append((field, f'{field} was {told[0]}, now {told[1]}'))
        refused = [
            told
            for field, told in changes
            if not any(fnmatch.fnmatchcase(field, pattern) for pattern in MAY_CHANGE)
        ]
        if refused:
            raise UserError(
                f'{workdir} belongs to another run ({"; ".join(refused)}): choose another '
                '--workdir, or give the fields their old values.'
            )
    fresh = path.with_name('.config.json')
    try:
        fresh.write_text(to_json(config))
        fresh.replace(path)
    except OSError as error:
        raise UserError(
            f'{path} cannot be written ({error.strerror}): make room or make it writable.'
        ) from error
    return [told for _, told in changes]


def check_shared(workdir: str | os.PathLike) -> None:
    """Raises a UserError where this process does not see the config.json that another one wrote."""
    path = epath.Path(workdir) / 'config.json'
    deadline = time.monotonic() + SHARED_WITHIN_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f'{path} was written by process 0 and is not seen on {socket.gethostname()}: give '
                'a --workdir on storage that all machines of the run share.'
            )
        time.sleep(1)


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


def _flat(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f'{prefix}{key}.')
        else:
            flat[prefix + key] = _tuples(value)
    return flat


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value
