"""Decides what a run starts from: its own checkpoint, the weights of another, or its seed."""

import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.config.data import make_train_loader
from mae_jax.errors import UserError
from mae_jax.experiment.setup import Setup
from mae_jax.experiment.starting_weights import load_weights
from mae_jax.runtime.processes import say
from mae_jax.tasks.preprocess import normalize
from mae_jax.training.state import TrainState, abstract_state, create_state, replace_params

CHUNK = 64
"""Training crops in memory at once."""


def starting_state(setup: Setup, checkpoints: Checkpoints) -> TrainState:
    """Returns the state to go on from; `run.py` lists in which order it is looked for.

    Raises:
      UserError: the checkpoint is of other data, or `init_from` does not fit.
    """
    config, task = setup.config, setup.task
    target = abstract_state(task, setup.optimizer, setup.mesh, ema_decay=task.ema_decay)
    restored = checkpoints.restore(target)
    if restored is not None:
        return _resumed(setup, *restored)
    if config.mode == 'eval' and not config.init_from:
        raise UserError(f'{setup.workdir} holds no checkpoint to evaluate: train first.')
    state = create_state(task, setup.optimizer, setup.mesh, config.seed, ema_decay=task.ema_decay)
    if config.init_from:
        return _from_weights(setup, state)
    if warning := task.untrained_warning(config):
        say(warning)
    return _fitted(setup, state)


def _resumed(setup: Setup, state: TrainState, step: int, meta: dict) -> TrainState:
    """Checks that a restored state belongs to the same seed, batch size and data."""
    differing = {k: (meta.get(k), v) for k, v in setup.identity.items() if meta.get(k) != v}
    if differing:
        changes = '; '.join(f'{k} was {old}, now {new}' for k, (old, new) in differing.items())
        raise UserError(
            f'{setup.workdir} holds a run on other data ({changes}): choose another --workdir.'
        )
    say(f'resuming at step {step} of {setup.length.num_steps} from {setup.workdir}')
    return state


def _from_weights(setup: Setup, state: TrainState) -> TrainState:
    """Replaces initial values by the weights of `init_from`."""
    config, task = setup.config, setup.task
    loaded = load_weights(
        config.init_from, config, state.params, state.model_state, required=task.is_required
    )
    for line in loaded.report:
        say(line)
    if config.mode == 'eval':
        if loaded.initial:
            raise UserError(
                f'{config.init_from} has no trained {", ".join(loaded.initial)}: nothing to '
                'evaluate; fine-tune it first.'
            )
        state = state.replace(step=jnp.asarray(loaded.step, jnp.int32))  # the report names it
    state = replace_params(state, loaded.params).replace(model_state=loaded.model_state)
    return _fitted(setup, state, inherited='pca/basis' not in loaded.initial)


def _fitted(setup: Setup, state: TrainState, *, inherited: bool = False) -> TrainState:
    def crops(count: int) -> Iterator[jax.Array]:
        return training_crops(setup, count)

    return setup.task.fit(state, setup.config, crops, inherited=inherited)


def training_crops(setup: Setup, count: int) -> Iterator[jax.Array]:
    """Yields the first `count` crops that the run trains on, normalised, `CHUNK` at a time."""
    task, config = setup.task, setup.config.copy_and_resolve_references()
    config.batch_size = CHUNK  # the order of examples does not depend on it
    config.dataset.update(repeats=1, resize='host')  # other images say more than other views
    loader = make_train_loader(config, setup.source, np.arange(CHUNK))
    chunks = -(-count // CHUNK)
    hidden = not sys.stderr.isatty() or chunks == 1
    with loader.iterate(0, chunks) as batches:
        for batch in tqdm(batches, total=chunks, desc='crops', leave=False, disable=hidden):
            images = batch['image'][:count]
            yield normalize(images, scale=task.scale, mean=task.mean, std=task.std)
            count -= len(images)
