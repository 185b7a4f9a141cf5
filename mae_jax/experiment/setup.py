"""Makes what a run consists of from its config: mesh, data, task, length, optimiser."""

import dataclasses
from typing import Any

import jax
import optax
from etils import epath
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from mae_jax.config.data import make_sources
from mae_jax.config.length import Length, make_learning_rate, make_length
from mae_jax.config.model import make_architecture, residual_dtype
from mae_jax.config.recipe import choose, explain, unset_fields
from mae_jax.config.workers import with_workers
from mae_jax.errors import UserError
from mae_jax.files.buckets import as_path
from mae_jax.runtime.chips import choose_dtype
from mae_jax.tasks import make_task
from mae_jax.training import sharding
from mae_jax.training.task import Task

MINIMA = {
    'log_every_steps': 1,
    'checkpoint_every_steps': 1,
    'checkpoint_every_minutes': 0,
    'keep_last': 1,
    'eval_every_steps': 0,
    'eval_examples': 1,
    'image_every_steps': 0,
    'step_timeout_s': 1,
    'optimizer.skip_nonfinite': 0,
}
"""Smallest value of each numeric field of the loop."""


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run consists of, made from its config alone; nothing in it changes.

    Attributes:
      config: nothing in it is left to choose.
      source, held_out: training and evaluation examples.
      optimizer: of the trained parameters.
      learning_rate: of each step.
      identity: what a checkpoint must agree with, in addition to the work directory's config.
      recipe: one line about what was chosen from the data; '' where the config had all.
      reading: one line about what loads the images.
    """

    config: ConfigDict
    workdir: epath.Path
    mesh: Mesh
    task: Task
    source: Any
    held_out: Any
    length: Length
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    identity: dict[str, Any]
    recipe: str = ''
    reading: str = ''


def make_setup(config: ConfigDict, workdir: str, sources: tuple[Any, Any] | None = None) -> Setup:
    """Makes mesh, data, task, length and optimiser of a run; chooses what its config leaves unset.

    Args:
      config: complete.
      workdir: of the run.
      sources: the training and the held-out examples; None takes those of the config.

    Raises:
      UserError: a field does not work; the message names it.
    """
    check_fields(config)
    mesh = sharding.make_mesh(config.mesh.fsdp)
    source, held_out = sources or make_sources(config)
    chosen = unset_fields(config)
    config = complete(config, len(source), mesh.size)
    check_batch(config, mesh)
    config, reading = with_workers(config, source)
    task = make_task(config, source)
    task.check_data(source, held_out)
    length = make_length(config, len(source))
    learning_rate = make_learning_rate(config, length)
    return Setup(
        config=config,
        workdir=as_path(workdir),
        mesh=mesh,
        task=task,
        source=source,
        held_out=held_out,
        length=length,
        optimizer=task.make_optimizer(config.optimizer, learning_rate),
        learning_rate=learning_rate,
        identity={
            'seed': config.seed,
            'batch_size': config.batch_size,
            'dataset': source.identity,
        },
        recipe=explain(chosen, config, length.num_steps, len(source), source.num_classes),
        reading=reading,
    )


def complete(config: ConfigDict, examples: int, devices: int) -> ConfigDict:
    """Returns a copy of a config with the fields chosen that it leaves to the data or the machine.

    Args:
      config: of a run.
      examples: number of training images.
      devices: over which a batch is split.
    """
    width = make_architecture(config.model)['width']
    config = choose(config, examples=examples, width=width, devices=devices)
    if config.model.dtype == 'auto':
        config.model.dtype = choose_dtype(jax.default_backend())
    if config.model.get('residual_dtype') == 'auto':
        config.model.residual_dtype = residual_dtype(config.model)
    return config


def check_fields(config: ConfigDict) -> None:
    """Raises a UserError for a field of the loop itself that cannot work."""
    if config.mode not in ('train', 'eval'):
        raise UserError(f"mode='{config.mode}' is unknown: choose 'train' or 'eval'.")
    for field, minimum in MINIMA.items():
        group, _, name = field.rpartition('.')
        value = (config[group] if group else config).get(name)
        if value is not None and value < minimum:
            raise UserError(f'{field}={value} must be at least {minimum}.')


def check_batch(config: ConfigDict, mesh: Mesh | AbstractMesh) -> None:
    """Raises a UserError unless the batch can be split over devices and micro-batches."""
    accumulate, repeats = config.optimizer.accumulate, config.dataset.repeats
    sharding.check_batch(config.batch_size, mesh, accumulate, repeats)
