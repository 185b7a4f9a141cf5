"""A config -> its task: what is learned, and by which model."""

from typing import Any

import jax
import ml_collections
import optax

from mae_jax.config.length import Length
from mae_jax.config.model import image_size, make_architecture, make_mae, statistics
from mae_jax.errors import UserError
from mae_jax.tasks.classify import Classify, _classify, num_classes
from mae_jax.tasks.pretrain import Pretrain, make_tokenizer_of
from mae_jax.training.optimizer import decays_finetune, layer_scales, make_optimizer, make_schedule


def make_task(config: ml_collections.ConfigDict, source: Any) -> Pretrain | Classify:
    """The task of a config.

    Args:
      config: of the run.
      source: its training data, which say how many classes there are.

    Raises:
      UserError: a field that does not work, by name.
    """
    if config.task == 'pretrain':
        task = Pretrain(
            make_mae(config),
            image_size(config),
            tokenizer=make_tokenizer_of(config),
            **statistics(config),
        )
    elif config.task == 'classify':
        task = _classify(config, num_classes(config, source))
    else:
        raise UserError(f"task='{config.task}' is unknown: choose 'pretrain', 'classify' or 'knn'.")
    jax.eval_shape(task.init, jax.random.key(0))  # every mistake of shape shows here, at no cost
    return task


def make_tx(
    config: ml_collections.ConfigDict, length: Length
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The optimiser and the learning rate of a config."""
    fields, extra = config.optimizer, {}
    schedule = make_schedule(
        peak=fields.base_lr * config.batch_size / 256,
        total_steps=length.num_steps,
        warmup_steps=length.warmup_steps,
        minimum=fields.min_lr,
    )
    if config.task == 'classify':
        if not 0 < fields.layer_decay <= 1:
            raise UserError(f'optimizer.layer_decay={fields.layer_decay} must be in (0, 1].')
        depth = make_architecture(config.model)['depth']
        extra = dict(
            momentum=fields.momentum,
            trust_coefficient=fields.trust_coefficient,
            decay_mask=decays_finetune,
        )
        if fields.layer_decay != 1:
            extra['scales'] = lambda params: layer_scales(params, fields.layer_decay, depth)
    tx = make_optimizer(
        fields.name,
        schedule,
        b1=fields.b1,
        b2=fields.b2,
        eps=fields.eps,
        weight_decay=fields.weight_decay,
        clip_norm=fields.clip_norm,
        **extra,
    )
    return tx, schedule
