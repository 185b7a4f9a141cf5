"""Reads how long a run is, and at what intervals it saves and evaluates."""

import dataclasses

import optax
from ml_collections import ConfigDict

from mae_jax.errors import UserError
from mae_jax.training.optimizer import make_schedule


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a run is, in steps.

    Attributes:
      cut_warmup: whether the config's warm-up was longer than the run.
    """

    num_steps: int
    warmup_steps: int
    steps_per_epoch: float
    cut_warmup: bool


def make_length(config: ConfigDict, examples: int) -> Length:
    """Converts epochs to steps, floor(epochs * examples / batch), and cuts a warm-up to the run.

    Raises:
      UserError: the run would have no step.
    """
    per_epoch = examples / config.batch_size
    num_steps = config.num_steps
    if num_steps is None:
        num_steps = int(config.num_epochs * examples / config.batch_size + 1e-6)
    if num_steps < 1:
        raise UserError(
            f'num_epochs={config.num_epochs} of {examples} examples is no step of '
            f'batch_size={config.batch_size}: train longer, or with a smaller batch.'
        )
    warmup = int(config.optimizer.warmup_epochs * per_epoch + 1e-6)
    return Length(num_steps, min(warmup, num_steps), per_epoch, warmup > num_steps)


def make_learning_rate(config: ConfigDict, length: Length) -> optax.Schedule:
    """Makes the learning rate of each step: `optimizer.base_lr` is that of a batch of 256."""
    fields = config.optimizer
    return make_schedule(
        peak=fields.base_lr * config.batch_size / 256,
        total_steps=length.num_steps,
        warmup_steps=length.warmup_steps,
        minimum=fields.min_lr,
        shape=fields.get('schedule', 'cosine'),
        warmup_from=fields.get('warmup_from', 0.0),
        drop_at=fields.get('drop_at') or (),
    )


def interval(steps: int | None, length: Length, *, once: bool = False) -> int:
    """Returns an interval in steps: as configured, or else once an epoch, at least once a run.

    Args:
      steps: the value of the field; None where it is unset.
      length: of the run.
      once: leave it at the end of the run where the field is unset. A run on cached features takes
        seconds, less than its checkpoints would.
    """
    if steps is not None:
        return steps
    if once:
        return length.num_steps
    return min(max(round(length.steps_per_epoch), 1), length.num_steps)
