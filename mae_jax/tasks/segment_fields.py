"""Reads the config of a segmentation run into its task."""

from typing import Any

from ml_collections import ConfigDict

from mae_jax.config.model import image_size, make_architecture, make_segmenter, statistics
from mae_jax.config.pairs import window_stride
from mae_jax.data.sources.classes import class_colours
from mae_jax.errors import UserError
from mae_jax.tasks.finetune import check_finetuning, frozen_blocks, parse_trained
from mae_jax.tasks.segment import Segment


def make_segment(config: ConfigDict, source: Any) -> Segment:
    """Makes the task of `task='segment'`.

    Args:
      config: of the run.
      source: the training data, which give classes and their colours.

    Raises:
      UserError: a field does not work, or the data have no masks.
    """
    depth = make_architecture(config.model)['depth']
    trained = parse_trained(config.trained, depth)
    check_fields(config)
    if not source.num_classes:
        raise UserError(
            f"dataset.name={config.dataset.name!r} has no masks, and task='segment' needs them: "
            "use 'paired_folders'."
        )
    colours = tuple(tuple(map(int, colour)) for colour in class_colours(source))
    return Segment(
        make_segmenter(config, source.num_classes, frozen_blocks(trained, depth)),
        source.num_classes,
        image_size(config),
        window_stride(config),
        colours=colours,
        trained=trained,
        auxiliary_weight=config.model.auxiliary_weight,
        per_class=config.per_class,
        layer_decay=config.optimizer.layer_decay,
        ema_decay=config.ema_decay,
        picture_every_steps=config.image_every_steps or 0,
        **statistics(config),
    )


def check_fields(config: ConfigDict) -> None:
    """Raises a UserError for fields that contradict each other or are out of range."""
    model = config.model
    if config.optimizer.accumulate > 1:
        raise UserError(
            "task='segment' needs the whole batch at once, for its batch norm: set "
            'optimizer.accumulate=1, and a smaller batch_size or model.remat=block.'
        )
    for field in ('head_width', 'auxiliary_width'):
        if model[field] is not None and model[field] < 1:
            raise UserError(f'model.{field}={model[field]} must be at least 1.')
    if model.auxiliary_weight < 0:
        raise UserError(f'model.auxiliary_weight={model.auxiliary_weight} must be 0 or more.')
    check_finetuning(config, {})
