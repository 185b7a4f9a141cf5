"""A config -> the parts of a run; `build_task.py` makes the task among them."""

import dataclasses

import ml_collections

from mae_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a run is, in steps."""

    num_steps: int
    warmup_steps: int
    steps_per_epoch: float
    cut_warmup: bool  # the config's warm-up was longer than the run


def make_length(config: ml_collections.ConfigDict, examples: int) -> Length:
    """Epochs -> steps: floor(epochs * examples / batch), a warm-up cut to the run."""
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


def interval(config: ml_collections.ConfigDict, field: str, length: Length) -> int:
    """Every so many steps. Unset: once an epoch, and when a run ends that is shorter.

    A run on cached features takes seconds, less than its checkpoints would: once, when it ends.
    """
    if config[field] is not None:
        return config[field]
    if config.get('cache_features'):
        return length.num_steps
    return min(max(round(length.steps_per_epoch), 1), length.num_steps)
