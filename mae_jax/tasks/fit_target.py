"""Computes what a target needs before the first step: the basis of PCA, the tokenizer's weights.

Both become part of the run's state and so of its checkpoints. A resumed run has them from there,
but reads the structure of a tokenizer from its file again.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from mae_jax.errors import UserError
from mae_jax.models.patches import patchify
from mae_jax.pretext.pca import fit_pca
from mae_jax.runtime.processes import on_first, say
from mae_jax.training.sharding import put
from mae_jax.training.state import TrainState, replace_params
from mae_jax.training.task import Crops

CHECKED_IMAGES = 64
"""Images on which the ids of a user's tokenizer are checked."""


def fit_target(
    task: Any, state: TrainState, target: ConfigDict, crops: Crops, *, inherited: bool
) -> TrainState:
    """Returns the state with what its target needs in it; unchanged where that is nothing.

    Args:
      task: the `Pretrain` task.
      state: of the run that is about to start.
      target: `config.target`.
      crops: gives training crops.
      inherited: whether the state already holds the basis of `init_from`.

    Raises:
      UserError: the sample is too small, the tokenizer cannot be read, or does not make tokens.
    """
    if 'pca' in state.params and not inherited:
        basis = _fit_pca(task, target, crops, channels=len(task.mean))
        placed = _place_like(basis, state.params['pca'])
        return replace_params(state, state.params | {'pca': placed})
    if 'tokenizer' in state.model_state:
        weights = task.tokenizer.load_params()
        placed = _place_like(weights, state.model_state['tokenizer'])
        return state.replace(model_state=state.model_state | {'tokenizer': placed})
    if task.tokenizer is not None:
        _check_ids(task, target, crops)
    return state


def _fit_pca(task: Any, target: ConfigDict, crops: Crops, channels: int) -> dict[str, np.ndarray]:
    """Fits on process 0 alone, so that the basis is the same in all processes, bit for bit."""
    patch_size = task.model.patch_size
    patch_dim = patch_size**2 * channels
    if target.sample * task.num_patches <= patch_dim:
        raise UserError(
            f'target.sample={target.sample} images are {target.sample * task.num_patches} '
            f'patches: too few for the covariance of {patch_dim} values; take more.'
        )

    def fit() -> dict[str, np.ndarray]:
        patches = (
            np.asarray(patchify(images, patch_size)).reshape(-1, patch_dim)
            for images in crops(target.sample)
        )
        basis, explained = fit_pca(patches, target.components)
        say(
            f'PCA of {target.sample:,} training crops: {target.components} of {patch_dim} '
            f'coefficients hold {explained:.1%} of the variance'
        )
        return basis

    basis = on_first(fit)
    if jax.process_count() == 1:
        return basis
    shapes = {'mean': (patch_dim,), 'basis': (patch_dim, target.components)}
    empty = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return multihost_utils.broadcast_one_to_all(basis or empty)


def _check_ids(task: Any, target: ConfigDict, crops: Crops) -> None:
    """Checks some ids of a user's function, which cannot be done within a step."""
    ids = [np.asarray(jax.jit(task.tokens)({}, images)) for images in crops(CHECKED_IMAGES)]
    low, high = np.min(ids), np.max(ids)
    if low < 0 or high >= target.codes:
        raise UserError(
            f'target.tokenizer={target.tokenizer!r} gives ids from {low} to {high}, and '
            f'target.codes={target.codes} are 0 to {target.codes - 1}: give as many as there are.'
        )


def _place_like(values: Any, like: Any) -> Any:
    """Puts arrays onto the devices with the shardings of the arrays that they replace."""
    return jax.tree.map(lambda new, old: put(new, old.sharding), values, like)
