"""What a target needs before the first step: the basis of PCA, the weights of a tokenizer.

Both end up in the run's state and so in its checkpoints: a run that goes on has them from there,
though what a tokenizer looks like is still read from its file.
"""

import sys
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from mae_jax.config.data import make_train_loader
from mae_jax.errors import UserError
from mae_jax.experiment.build import Run
from mae_jax.models.patches import patchify
from mae_jax.pretext.pca import fit_pca
from mae_jax.runtime.processes import on_first, say
from mae_jax.tasks.preprocess import normalize
from mae_jax.training.state import TrainState, replace_params

CHUNK = 64
"""Images in memory at once."""


def fit_target(parts: Run, state: TrainState, *, has_basis: bool = False) -> TrainState:
    """The state with what its task's target needs in it; unchanged where that is nothing.

    Args:
      parts: of the run.
      state: from which it is about to start.
      has_basis: whether the state has a basis already, that of `init_from`.

    Raises:
      UserError: the sample is too small, the tokenizer cannot be read, or does not make tokens.
    """
    if 'pca' in state.params and not has_basis:
        fitted = _placed(_fit_pca(parts), state.params['pca'])
        return replace_params(state, state.params | {'pca': fitted})
    if 'tokenizer' in state.model_state:
        weights = parts.task.tokenizer.load_params()
        placed = _placed(weights, state.model_state['tokenizer'])
        return state.replace(model_state=state.model_state | {'tokenizer': placed})
    if parts.config.get('target', {}).get('name') == 'token':
        _check_function(parts)
    return state


def _fit_pca(parts: Run) -> dict[str, np.ndarray]:
    """Process 0 fits, so that all have the same to the bit."""
    fields, patch_size = parts.config.target, parts.task.model.patch_size
    patch_dim = patch_size**2 * parts.config.dataset.channels
    if fields.sample * parts.task.num_patches <= patch_dim:
        raise UserError(
            f'target.sample={fields.sample} images are {fields.sample * parts.task.num_patches} '
            f'patches: too few for the covariance of {patch_dim} values; take more.'
        )

    def fit() -> dict[str, np.ndarray]:
        patches = (
            np.asarray(patchify(images, patch_size)).reshape(-1, patch_dim)
            for images in _crops(parts, fields.sample)
        )
        found, explained = fit_pca(patches, fields.components)
        say(
            f'PCA of {fields.sample:,} training crops: {fields.components} of {patch_dim} '
            f'coefficients hold {explained:.1%} of the variance'
        )
        return found

    found = on_first(fit)
    if jax.process_count() == 1:
        return found
    shapes = {'mean': (patch_dim,), 'basis': (patch_dim, fields.components)}
    empty = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    return multihost_utils.broadcast_one_to_all(found or empty)


def _check_function(parts: Run) -> None:
    """Looks at some ids of a user's function: within a step nobody can."""
    fields, task = parts.config.target, parts.task
    ids = [np.asarray(jax.jit(task.tokens)({}, images)) for images in _crops(parts, CHUNK)]
    low, high = np.min(ids), np.max(ids)
    if low < 0 or high >= fields.codes:
        raise UserError(
            f'target.tokenizer={fields.tokenizer!r} gives ids from {low} to {high}, and '
            f'target.codes={fields.codes} are 0 to {fields.codes - 1}: give as many as there are.'
        )


def _crops(parts: Run, count: int) -> Iterator[jax.Array]:
    """The first so many crops that the run trains on, normalised, `CHUNK` at a time."""
    task, config = parts.task, parts.config.copy_and_resolve_references()
    config.batch_size = CHUNK  # the order of examples does not depend on it
    config.dataset.update(repeats=1, resize='host')  # other images say more than other views
    loader = make_train_loader(config, parts.source, np.arange(CHUNK))
    chunks = -(-count // CHUNK)
    hidden = not sys.stderr.isatty() or chunks == 1
    with loader.iterate(0, chunks) as batches:
        for batch in tqdm(batches, total=chunks, desc='PCA', leave=False, disable=hidden):
            images = batch['image'][:count]
            yield normalize(images, scale=task.scale, mean=task.mean, std=task.std)
            count -= len(images)


def _placed(values, like):
    """These values, laid out over the devices as what they replace."""
    return jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), values, like)
