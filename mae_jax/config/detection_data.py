"""Reads the fields of images with boxes: how they are found, resized and padded."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mae_jax.config.model import statistics
from mae_jax.data.transforms.boxes import MASK_SIDE
from mae_jax.errors import UserError


def has_instances(config: ConfigDict) -> bool:
    """Returns whether the examples of a config are images with boxes."""
    return 'max_boxes' in config.dataset


def instance_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of the source `coco` that the config holds."""
    dataset = config.dataset
    return dict(annotations=dataset.get('annotations'), max_boxes=dataset.get('max_boxes'))


def view_fields(config: ConfigDict, source: Any) -> dict[str, Any]:
    """Returns the arguments of `train_instances` that `views.train_views` does not have.

    Raises:
      UserError: a field is out of range, or the number of classes is not that of the source.
    """
    dataset = config.dataset
    low, high = jitter = tuple(map(float, dataset.jitter))
    if not 0 < low <= high:
        raise UserError(f'dataset.jitter={jitter} must be two positive numbers in order.')
    if dataset.max_boxes < 1:
        raise UserError(f'dataset.max_boxes={dataset.max_boxes} must be at least 1.')
    check_num_classes(config, source)
    return dict(jitter=jitter, max_boxes=dataset.max_boxes, fill=padding(config))


def padding(config: ConfigDict) -> tuple[float, ...]:
    """Returns what normalisation maps to 0, for each band."""
    fields = statistics(config)
    return tuple(mean * fields['scale'] for mean in fields['mean'])


def check_num_classes(config: ConfigDict, source: Any) -> None:
    """Raises a UserError where `num_classes` is not that of the source, or it has no classes."""
    expected = config.get('num_classes')
    if expected not in (None, source.num_classes) or not source.num_classes:
        raise UserError(
            f'num_classes={expected}, but {config.dataset.name} has {source.num_classes} classes: '
            "leave it unset, and give data with boxes, such as dataset.name='coco'."
        )


def train_shapes(config: ConfigDict) -> dict[str, tuple[tuple[int, ...], type]]:
    """Returns shape and dtype of what a training batch has beside image and label, by name."""
    rows, objects = config.batch_size, config.dataset.max_boxes
    return {
        'size': ((rows, 2), np.int32),
        'boxes': ((rows, objects, 4), np.float32),
        'classes': ((rows, objects), np.int32),
        'masks': ((rows, objects, MASK_SIDE, MASK_SIDE), np.uint8),
    }
