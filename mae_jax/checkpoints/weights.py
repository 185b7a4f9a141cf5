"""The weights of a run alone, read without knowing its model: to continue from, or to look at.

Beside `checkpoint.py` the only file that knows Orbax. A checkpoint may be somebody else's, so that
nothing in it is believed before it is checked.
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

from mae_jax.checkpoints.find import Log, find_whole, read_meta
from mae_jax.checkpoints.integrity import listed_files
from mae_jax.errors import UserError, brief
from mae_jax.files.limits import MAX_JSON_BYTES, check_expansion
from mae_jax.files.paths import absolute

PyTree = Any
_warn = logging.getLogger(__name__).warning


class Weights(NamedTuple):
    """What a run has learned, as nested dicts of numpy arrays, and where it stood."""

    params: PyTree
    """The average of the parameters, where the run kept one."""
    model_state: PyTree
    step: int
    meta: dict


def restore_weights(
    directory: str | os.PathLike, step: int | None = None, *, log: Log = _warn
) -> Weights:
    """Reads the weights alone, without knowing the model: to continue from, or to look at.

    Changes nothing in the directory, so a run may be using it.

    Args:
      directory: as given to `Checkpoints`; their state is a `TrainState`, or a dict like it.
      step: that one; None for the newest whole one.
      log: is told about damaged checkpoints.

    Raises:
      UserError: there is no whole checkpoint.
    """
    directory = absolute(directory)
    found = find_whole(directory, step, log=log)
    if found is None:
        raise UserError(f'There is no checkpoint in {directory}: give the --workdir of a run.')
    path = directory / str(found)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            restored = _restore_weights(path, checkpointer)
        params, average = (
            traverse_util.flatten_dict(restored.get(name, {})) for name in ('params', 'ema')
        )
        params = traverse_util.unflatten_dict(params | average)
    except Exception as error:  # a checkpoint of somebody else's can be anything
        raise UserError(
            f'The checkpoint {path} cannot be read ({brief(error)}): take another one, or get it '
            'again.'
        ) from error
    return Weights(params, restored.get('model_state', {}), found, read_meta(path))


def _restore_weights(path: epath.Path, checkpointer: ocp.PyTreeCheckpointer) -> dict[str, Any]:
    """'params', and 'model_state' and 'ema' if any. Raises all kinds of exceptions."""
    # Orbax would parse texts of any length; and without a manifest look for files by the names of
    # tensors, which may lead anywhere. TensorStore's keys in a manifest cannot.
    files = listed_files(path)
    if 'state/manifest.ocdbt' not in files:
        raise ValueError('manifest.ocdbt is missing')
    for name in ('_METADATA', '_sharding'):
        listed, _ = files.get(f'state/{name}', (MAX_JSON_BYTES + 1, 0))
        if listed > MAX_JSON_BYTES and (path / 'state' / name).exists():
            raise ValueError(f'{name} is too large, or in no list')
    stored = checkpointer.metadata(path / 'state').item_metadata.tree
    wanted = ('params', 'model_state', 'ema')
    item = {name: dict(stored[name]) for name in wanted if stored.get(name)}
    item.get('model_state', {}).pop('tokenizer', None)  # large, and no part of the model
    item = {name: tree for name, tree in item.items() if tree}
    claimed = [
        math.prod(shape) * np.dtype(array.dtype).itemsize
        for array in jax.tree.leaves(item)
        for shape in (array.shape, array.storage.chunk_shape)  # each is allocated as it says
    ]
    check_expansion(sum(claimed), sum(size for size, _ in files.values()))
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    return checkpointer.restore(
        path / 'state',
        args=ocp.args.PyTreeRestore(item=item, restore_args=as_numpy, partial_restore=True),
    )
