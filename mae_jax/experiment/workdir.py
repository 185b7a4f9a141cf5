"""The work directory: one run at a time, and always the same run."""

import fnmatch
import json
import os
import socket
import time
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from mae_jax.config.saved import _tuples, load_config, to_json
from mae_jax.errors import UserError

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


def _flat(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f'{prefix}{key}.')
        else:
            flat[prefix + key] = _tuples(value)
    return flat
