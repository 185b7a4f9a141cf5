"""What a classifier is worth on images unlike those it was trained on (paper, appendix)."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mae_jax.errors import UserError, counted

ALEXNET = {
    'gaussian_noise': 0.886428,
    'shot_noise': 0.894468,
    'impulse_noise': 0.922640,
    'defocus_blur': 0.819880,
    'glass_blur': 0.826268,
    'motion_blur': 0.785948,
    'zoom_blur': 0.798360,
    'snow': 0.866816,
    'frost': 0.826572,
    'fog': 0.819324,
    'brightness': 0.564592,
    'contrast': 0.853204,
    'elastic_transform': 0.646056,
    'pixelate': 0.717840,
    'jpeg_compression': 0.606500,
}
"""Corruption -> AlexNet's error, mean over the severities (Hendrycks & Dietterich 2019)."""

IMAGENET_CLASSES = 1000
SHOWN = 5
"""Class names in a message."""


class Counts(NamedTuple):
    """The images of a set that were classified, and how many of them correctly."""

    correct: int
    images: int

    @property
    def error(self) -> float:
        return 1 - self.correct / self.images


Errors = Mapping[str, Sequence[float]]
"""Corruption -> its error at each severity, a share."""


def mean_errors(errors: Errors) -> dict[str, float]:
    """Returns the error of each corruption, mean over the severities."""
    return {name: float(np.mean(values)) for name, values in errors.items()}


def corruption_errors(errors: Errors) -> dict[str, float]:
    """Returns the CE of each corruption: its mean error over that of AlexNet."""
    return {name: value / ALEXNET[name] for name, value in mean_errors(errors).items()}


def mean_corruption_error(errors: Errors) -> float:
    """Returns the mCE of ImageNet-C, the mean of `corruption_errors`; AlexNet's is 1."""
    return float(np.mean(list(corruption_errors(errors).values())))


def imagenet_wnids() -> list[str]:
    """Returns the WordNet ids of ImageNet's 1,000 classes, sorted, which is the order of labels.

    They are those of the file that TensorFlow Datasets has for its `imagenet2012`.
    """
    package = importlib.util.find_spec('tensorflow_datasets').submodule_search_locations[0]
    return (Path(package) / 'datasets/imagenet2012/labels.txt').read_text().split()


def match_classes(names: Sequence[str], wanted: Sequence[str], where: str, model: str) -> list[int]:
    """Returns which outputs of a model are those of the classes of a data set, in their order.

    Args:
      names: of the model's classes, in the order of its outputs.
      wanted: names of the classes of the data set.
      where: the data set, for messages.
      model: the classifier, for messages.

    Raises:
      UserError: a class of the data set is not one of the model's.
    """
    number = {name: index for index, name in enumerate(names)}
    unknown = [name for name in wanted if name not in number]
    if unknown:
        raise UserError(
            f'{where} has {counted(len(unknown), "class")} that {model} does not have '
            f'({_first(unknown)}): its {len(names):,} are {_first(names)}; give --classes FILE '
            'with the name of the folder of each of its outputs, a line each, or --classes '
            'imagenet for the sorted wnids.'
        )
    return [number[name] for name in wanted]


def _first(names: Sequence[str]) -> str:
    return ', '.join(names[:SHOWN]) + (', ...' if len(names) > SHOWN else '')


def put_first(columns: Sequence[int], classes: int) -> list[int]:
    """Returns the numbers of all classes, those of `columns` first and in their order."""
    chosen = set(columns)
    return [*columns, *(number for number in range(classes) if number not in chosen)]


def with_classes(
    head: Mapping[str, Any], columns: Sequence[int], alone: Sequence[int] | None = None
) -> dict[str, np.ndarray]:
    """Returns the head of a classifier with its outputs in another order.

    Args:
      head: 'kernel' [D, classes] and 'bias' [classes].
      columns: the number of each new output among the old ones.
      alone: numbers of new outputs; the others become minus infinity, so that an argmax is over
        these alone. None for all.
    """
    kernel, bias = (np.asarray(head[name])[..., columns] for name in ('kernel', 'bias'))
    if alone is not None:
        bias = np.where(np.isin(np.arange(len(bias)), alone), bias, -np.inf).astype(bias.dtype)
    return {'kernel': kernel, 'bias': bias}
