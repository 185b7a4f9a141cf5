"""Reads the weights of a run without knowing its model.

A checkpoint may come from somebody else: its metadata is checked before Orbax uses it.
"""

import logging
import math
import os
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from mae_jax.checkpoints.find import Log, find_newest_intact, read_meta
from mae_jax.checkpoints.integrity import listed_files
from mae_jax.errors import UserError, brief
from mae_jax.files.buckets import service_problem
from mae_jax.files.limits import MAX_JSON_BYTES, check_expansion
from mae_jax.files.paths import absolute

PyTree = Any
_warn = logging.getLogger(__name__).warning


class Weights(NamedTuple):
    """The weights of a checkpoint, as nested dicts of numpy arrays."""

    params: PyTree
    """The moving average of the parameters, if the run kept one."""
    model_state: PyTree
    step: int
    meta: dict


def restore_weights(
    directory: str | os.PathLike, step: int | None = None, *, log: Log = _warn
) -> Weights:
    """Reads parameters and running statistics from a directory of checkpoints.

    Changes nothing in the directory, so a run may be using it.

    Args:
      directory: as given to `Checkpoints`; their state is a `TrainState`, or a dict like it.
      step: the step to read; None for the newest intact one.
      log: called with a message for each damaged checkpoint.

    Raises:
      UserError: there is no intact checkpoint.
    """
    directory = absolute(directory)
    newest = find_newest_intact(directory, step, log=log)
    if newest is None:
        raise UserError(f'There is no checkpoint in {directory}: give the --workdir of a run.')
    path = directory / str(newest)
    try:
        restored = _restore_weights(path)
        params, average = (
            traverse_util.flatten_dict(restored.get(name, {})) for name in ('params', 'ema')
        )
        params = traverse_util.unflatten_dict(params | average)
    except Exception as error:  # an untrusted checkpoint can raise errors of any kind
        raise service_problem(error, path) or UserError(
            f'The checkpoint {path} cannot be read ({brief(error)}): take another one, or get it '
            'again.'
        ) from error
    return Weights(params, restored.get('model_state', {}), newest, read_meta(path))


def _restore_weights(path: epath.Path) -> dict[str, Any]:
    """Restores 'params', and 'model_state' and 'ema' if any. Raises exceptions of any kind."""
    # Orbax parses texts of any length. Without a manifest it opens files by the names of tensors,
    # which can lead out of the directory; the keys in TensorStore's manifest cannot.
    files = listed_files(path)
    if 'state/manifest.ocdbt' not in files:
        raise ValueError('manifest.ocdbt is missing')
    for name in ('_METADATA', '_sharding'):
        listed, _ = files.get(f'state/{name}', (MAX_JSON_BYTES + 1, 0))
        if listed > MAX_JSON_BYTES and (path / 'state' / name).exists():
            raise ValueError(f'{name} is too large, or not in the list of files')
    handler = ocp.PyTreeCheckpointHandler()
    stored = handler.metadata(path / 'state').tree
    names = ('params', 'model_state', 'ema')
    item = {name: dict(stored[name]) for name in names if stored.get(name)}
    item.get('model_state', {}).pop('tokenizer', None)  # large, and not part of the model
    item = {name: tree for name, tree in item.items() if tree}
    claimed = [
        math.prod(shape) * np.dtype(array.dtype).itemsize
        for array in jax.tree.leaves(item)
        for shape in (array.shape, array.storage.chunk_shape)  # TensorStore allocates both
    ]
    check_expansion(sum(claimed), sum(size for size, _ in files.values()))
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    with ocp.Checkpointer(handler) as checkpointer:
        return checkpointer.restore(
            path / 'state',
            args=ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True),
        )
