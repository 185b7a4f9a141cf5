"""Reads the fields of images with masks: what masks mean, how pairs are resized and evaluated."""

import functools
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mae_jax.config.model import image_size, statistics
from mae_jax.data.images.masks import MaskValues
from mae_jax.data.loader.pairs import EvalPlan, plan_eval
from mae_jax.data.transforms.pairs import fitted
from mae_jax.errors import UserError

INFERENCE = ('slide', 'whole')
LONG = 4
"""The long side, where it is not given, in short sides: 2048 to 512 in the paper's recipe."""


def has_masks(config: ConfigDict) -> bool:
    """Returns whether the examples of a config are pairs of an image and a mask."""
    return 'reduce_zero_label' in config.dataset


def mask_options(config: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of the source `paired_folders` that the config holds."""
    dataset = config.dataset
    return dict(
        num_classes=config.get('num_classes'),
        classes=dataset.get('classes'),
        reduce_zero_label=dataset.get('reduce_zero_label', False),
    )


def train_fields(config: ConfigDict, source: Any) -> dict[str, Any]:
    """Returns the arguments of `train_pairs` that `views.train_views` does not have.

    Raises:
      UserError: a field is out of range.
    """
    dataset = config.dataset
    low, high = ratio = tuple(map(float, dataset.resize_ratio))
    if not 0 < low <= high:
        raise UserError(f'dataset.resize_ratio={ratio} must be two positive numbers in order.')
    if not 0 < dataset.max_class_share <= 1:
        raise UserError(
            f'dataset.max_class_share={dataset.max_class_share} must be above 0 and at most 1 '
            '(any crop).'
        )
    sides = dict(sides=short_and_long(config), resize_ratio=ratio)
    return sides | dict(max_class_share=dataset.max_class_share, **shared_fields(config, source))


def shared_fields(config: ConfigDict, source: Any) -> dict[str, Any]:
    """Returns the arguments that `train_pairs` and `eval_pair` share."""
    fields = statistics(config)
    fill = tuple(mean * fields['scale'] for mean in fields['mean'])
    return dict(values=mask_values(config, source), fill=fill)


def mask_values(config: ConfigDict, source: Any) -> MaskValues:
    """Returns what the numbers in the masks of a source mean.

    Raises:
      UserError: the source has another number of classes than `config.num_classes`.
    """
    classes, expected = source.num_classes, config.get('num_classes')
    if expected not in (None, classes):
        raise UserError(
            f'num_classes={expected}, but {config.dataset.name} has {classes} classes: leave '
            'num_classes unset to take the number from the data.'
        )
    return values_of(classes, config.dataset)


def values_of(classes: int, dataset: ConfigDict) -> MaskValues:
    """Returns what the numbers in masks of so many classes mean."""
    ignored = tuple(np.ravel(dataset.ignored).tolist())
    return MaskValues(classes, ignored, dataset.reduce_zero_label)


def short_and_long(config: ConfigDict) -> tuple[int, int]:
    """Returns the most that the short and the long side of a resized image may have, in pixels.

    Raises:
      UserError: they are in the wrong order.
    """
    dataset = config.dataset
    short = min(image_size(config)) if dataset.short_side is None else dataset.short_side
    long = LONG * short if dataset.long_side is None else dataset.long_side
    if not 0 < short <= long:
        raise UserError(
            f'dataset.short_side={short} must be positive and at most long_side={long}.'
        )
    return short, long


def window_stride(config: ConfigDict) -> tuple[int, int]:
    """Returns from where to where windows of evaluation go on, in rows and columns of pixels.

    Raises:
      UserError: it is larger than the windows, which would leave pixels out.
    """
    window, stride = image_size(config), config.stride
    if stride is None:
        return tuple(max(1, side * 2 // 3) for side in window)
    if not 1 <= stride <= min(window):
        raise UserError(
            f'stride={stride} must be from 1 to {min(window)}, the side of the windows '
            '(image_size).'
        )
    return stride, stride


def make_plan(config: ConfigDict, source: Any, batch_size: int, limit: int | None) -> EvalPlan:
    """Plans the evaluation of a source: sizes, and the canvases that the windows fill.

    Raises:
      UserError: a field does not work, or a mask cannot be read.
    """
    if config.inference not in INFERENCE:
        raise UserError(f'inference={config.inference!r} must be {" or ".join(INFERENCE)}.')
    window = image_size(config)
    if config.inference == 'whole':
        resize = canvas = functools.partial(_constant, window)
    else:
        resize = functools.partial(fitted, sides=short_and_long(config))
        canvas = functools.partial(_filled, window, window_stride(config))
    on_error = config.dataset.on_error
    return plan_eval(
        source,
        batch_size=batch_size,
        resize=resize,
        canvas=canvas,
        limit=limit,
        on_error=on_error,
    )


def _constant(result: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    return result


def _filled(
    window: tuple[int, int], stride: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int]:
    """Returns the smallest (height, width) that whole windows fill and that holds `size`."""
    return tuple(
        side + step * -(-max(length - side, 0) // step)
        for side, step, length in zip(window, stride, size, strict=True)
    )
