"""Labels as users have them, numbers or names, as indices of classes."""

from collections.abc import Iterable, Sequence

import numpy as np

from mae_jax.errors import UserError


def read_labels(
    labels: Iterable | None, class_names: Sequence[str] | None, count: int
) -> tuple[np.ndarray | None, list[str]]:
    """Converts labels to indices of classes.

    Args:
      labels: a number or a name for each example, or None. A number is an index of `class_names`,
        -1 where an example has no label; without `class_names` the classes are 0 to the largest.
      class_names: the classes in their order; without it, names are sorted.
      count: number of examples.

    Returns:
      (int32 [count] or None, names of the classes).

    Raises:
      UserError: there are more or fewer labels than examples, or one is not of a class.
    """
    names = None if class_names is None else [str(name) for name in class_names]
    if labels is None:
        return None, names or []
    labels = np.asarray(labels if isinstance(labels, np.ndarray) else list(labels))
    if labels.shape != (count,):
        raise UserError(f'labels of shape {labels.shape} for {count} examples: give one for each.')
    if labels.dtype.kind in 'US':
        labels = labels.astype(str)
        names = sorted(set(labels.tolist())) if names is None else names
        numbers = {name: number for number, name in enumerate(names)}
        if unknown := sorted(set(labels.tolist()) - numbers.keys()):
            raise UserError(f'the label {unknown[0]!r} is not in class_names.')
        return np.array([numbers[name] for name in labels.tolist()], np.int32), names
    indices = labels.astype(np.int64) if labels.dtype.kind in 'biuf' else None
    if indices is None or (indices != labels).any():
        raise UserError(f'labels of type {labels.dtype}: give whole numbers, or names.')
    largest = int(indices.max(initial=-1))
    names = [str(number) for number in range(largest + 1)] if names is None else names
    if largest >= len(names) or indices.min(initial=0) < -1:
        wrong = largest if largest >= len(names) else int(indices.min())
        raise UserError(f'the label {wrong} is not one of {len(names)} classes, nor -1 for none.')
    return indices.astype(np.int32), names
