"""A config -> the parts of a run; `build_task.py` makes the task among them."""

import dataclasses
from typing import Any

import ml_collections
import optax
from etils import epath
from jax.sharding import AbstractMesh, Mesh

from mae_jax.config.data import check_classes, make_sources
from mae_jax.config.length import Length, make_length
from mae_jax.errors import UserError
from mae_jax.tasks.make import make_task, make_tx
from mae_jax.training import sharding as mesh_lib
from mae_jax.training.task import Task


def check_fields(config: ml_collections.ConfigDict) -> None:
    """Raises a UserError for a field of the loop itself that cannot work."""
    if config.mode not in ('train', 'eval'):
        raise UserError(f"mode='{config.mode}' is unknown: choose 'train' or 'eval'.")
    least = {'log_every_steps': 1, 'checkpoint_every_steps': 1, 'keep_last': 1}
    least |= {'eval_every_steps': 0, 'eval_examples': 1, 'image_every_steps': 0}
    least |= {'step_timeout_s': 1}
    values = {'optimizer.skip_nonfinite': config.optimizer.skip_nonfinite}
    values |= {field: config.get(field) for field in least}
    for field, minimum in (least | {'optimizer.skip_nonfinite': 0}).items():
        value = values[field]
        if value is not None and value < minimum:
            raise UserError(f'{field}={value} must be at least {minimum}.')


def check_batch(config: ml_collections.ConfigDict, mesh: Mesh | AbstractMesh) -> None:
    """Raises a UserError unless the batch of a config can be split as it asks."""
    accumulate, repeats = config.optimizer.accumulate, config.dataset.repeats
    mesh_lib.check_batch(config.batch_size, mesh, accumulate, repeats)


def step_accumulate(config: ml_collections.ConfigDict) -> int:
    """Micro-batches of a step. A linear probe sees to its own: only its encoder needs them."""
    return 1 if config.get('trained') == 'head' else config.optimizer.accumulate


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run, made from its config alone; nothing here changes."""

    config: ml_collections.ConfigDict
    workdir: epath.Path
    mesh: Mesh
    task: Task
    source: Any
    held_out: Any
    length: Length
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    identity: dict[str, Any]
    """What a checkpoint must agree with, beside the work directory's config."""

    @classmethod
    def make(cls, config: ml_collections.ConfigDict, workdir: str) -> 'Run':
        mesh = mesh_lib.make_mesh(config.mesh.fsdp)
        check_batch(config, mesh)
        source, held_out = make_sources(config)
        if config.task == 'classify':
            check_classes(source, held_out)
        task = make_task(config, source)
        length = make_length(config, len(source))
        tx, schedule = make_tx(config, length)
        identity = {
            'seed': config.seed,
            'batch_size': config.batch_size,
            'dataset': source.identity,
        }
        workdir = epath.Path(workdir)
        return cls(config, workdir, mesh, task, source, held_out, length, tx, schedule, identity)
