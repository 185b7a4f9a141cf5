"""Holds a work directory for one run at a time, and always the same run."""

import contextlib
import fnmatch
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from mae_jax.checkpoints.find import steps
from mae_jax.config.saved import as_tuples, load_config, to_json
from mae_jax.errors import UserError
from mae_jax.files.lock import claim
from mae_jax.runtime.processes import on_first

SHARED_WITHIN_S = 60
"""Seconds for which network file systems may remember that a file did not exist."""

MAY_CHANGE = (
    # How a run is computed, watched and stored. All other fields define the run itself.
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
    'loggers',
    'profile_steps',
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
    'loggers': ('tensorboard',),
    'profile_steps': None,
}
"""Fields that the configs of earlier versions lack, with the values that those runs had."""


@contextlib.contextmanager
def hold(workdir: str | os.PathLike, config: ConfigDict) -> Iterator[list[str]]:
    """Holds the directory for this run, and keeps the run's config in it.

    Process 0 does it for all, since each other would see the directory held.

    Yields:
      One line for each field that differs from the last start, where it may (`MAY_CHANGE`).

    Raises:
      UserError: another process holds the directory, it belongs to another run, or cannot be
        written.
    """
    with contextlib.ExitStack() as stack:

        def enter() -> list[str]:
            stack.enter_context(claim(workdir))
            changes = check_config(workdir, config) if has_begun(workdir) else []
            write_config(workdir, config)
            return changes

        changes = on_first(enter)
        check_shared(workdir)
        yield changes or []


def has_begun(workdir: str | os.PathLike) -> bool:
    """Returns whether a checkpoint is there; until then a start may be changed and repeated."""
    directory = epath.Path(workdir)
    return (directory / 'config.json').exists() and bool(steps(directory / 'checkpoints'))


def check_config(workdir: str | os.PathLike, config: ConfigDict) -> list[str]:
    """Compares a config with that of the directory's last start.

    Returns:
      One line for each field that differs, where it may (`MAY_CHANGE`).

    Raises:
      UserError: a field differs that makes another run; or config.json cannot be read.
    """
    old, new = flatten(load_config(workdir).to_dict()), flatten(json.loads(to_json(config)))
    old = {field: value for field, value in ADDED.items() if field in new} | old
    unset = object()
    changes = {}
    for field in sorted(old.keys() | new.keys()):
        values = old.get(field, unset), new.get(field, unset)
        if values[0] != values[1] and field != 'mode':  # trained or evaluated, it is the same run
            before, now = ('unset' if x in (unset, None) else repr(x) for x in values)
            changes[field] = f'{field} was {before}, now {now}'
    refused = [line for field, line in changes.items() if not may_change(field)]
    if refused:
        raise UserError(
            f'{workdir} belongs to another run ({"; ".join(refused)}): choose another '
            '--workdir, or give the fields their old values.'
        )
    return list(changes.values())


def may_change(field: str) -> bool:
    """Returns whether a field, by its dotted name, may differ between starts of a run."""
    return any(fnmatch.fnmatchcase(field, pattern) for pattern in MAY_CHANGE)


def write_config(workdir: str | os.PathLike, config: ConfigDict) -> None:
    """Writes config.json, in one go: a reader sees the old one or the new one.

    Raises:
      UserError: it cannot be written.
    """
    path = epath.Path(workdir) / 'config.json'
    fresh = path.with_name('.config.json')
    try:
        fresh.write_text(to_json(config))
        fresh.replace(path)
    except OSError as error:
        raise UserError(
            f'{path} cannot be written ({error.strerror}): make room or make it writable.'
        ) from error


def check_shared(workdir: str | os.PathLike) -> None:
    """Raises a UserError if this process cannot see the config.json that process 0 wrote."""
    path = epath.Path(workdir) / 'config.json'
    deadline = time.monotonic() + SHARED_WITHIN_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f'{path} was written by process 0 and is not seen on {socket.gethostname()}: give '
                'a --workdir on storage that all machines of the run share.'
            )
        time.sleep(1)


def flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """Returns dotted name -> value of nested dictionaries; sequences become tuples."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f'{prefix}{key}.')
        else:
            flat[prefix + key] = as_tuples(value)
    return flat
