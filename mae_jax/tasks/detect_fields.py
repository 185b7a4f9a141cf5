"""Reads the config of a detection run into its task."""

from typing import Any

from ml_collections import ConfigDict

from mae_jax.config.model import image_size, make_architecture, make_detector, statistics
from mae_jax.data.sources.classes import class_colours
from mae_jax.errors import UserError
from mae_jax.tasks.detect import Detect
from mae_jax.tasks.finetune import check_finetuning, frozen_blocks, parse_trained


def make_detect(config: ConfigDict, source: Any) -> Detect:
    """Makes the task of `task='detect'`.

    Args:
      config: of the run.
      source: the training data, which give the categories.

    Raises:
      UserError: a field does not work, or the data have no boxes.
    """
    depth = make_architecture(config.model)['depth']
    trained = parse_trained(config.trained, depth)
    check_finetuning(config, {})
    if not source.num_classes:
        raise UserError(
            f"dataset.name={config.dataset.name!r} has no categories, and task='detect' needs "
            "them: use dataset.name='coco'."
        )
    return Detect(
        make_detector(config, source.num_classes, frozen_blocks(trained, depth)),
        source.num_classes,
        image_size(config),
        config.dataset.max_boxes,
        names=tuple(getattr(source, 'class_names', ())),
        colours=tuple(tuple(map(int, colour)) for colour in class_colours(source)),
        trained=trained,
        per_class=config.per_class,
        layer_decay=config.optimizer.layer_decay,
        ema_decay=config.ema_decay,
        picture_every_steps=config.image_every_steps or 0,
        **statistics(config),
    )
