"""Splits of a data set: their names, and what is held out where there is no evaluation split.

`validation`, `val`, `valid` and `test` stand for each other.
"""

from collections.abc import Collection

import numpy as np
from jaxtyping import Bool, Float64, Int, Shaped

from mae_jax.errors import UserError

TRAIN_SPLITS = ('train', 'training')
EVAL_SPLITS = ('validation', 'val', 'valid', 'test')
SHARE = 0.05
"""Of the images, held out where the config does not say how many."""
LEAST = 10
"""Images of each class that are held out then, if these are not above `LARGEST_SHARE` of it."""
LARGEST_SHARE = 0.2


class NoSplit(UserError):
    """A data set has no such split."""


def existing_split(name: str, split: str, splits: Collection[str]) -> str:
    """Returns `split` if the data set has it, else its evaluation split of another name.

    Args:
      name: of the data set, for the message.
      split: the split that is asked for; one of `EVAL_SPLITS` may be answered with another.
      splits: those that the data set has.

    Raises:
      NoSplit: the data set has no such split.
    """
    if split in EVAL_SPLITS and split not in splits:
        split = next((other for other in EVAL_SPLITS if other in splits), split)
    if split not in splits:
        raise NoSplit(f'{name} has no split {split!r}; it has {", ".join(splits)}.')
    return split


def choose_held_out(
    keys: Float64[np.ndarray, ' N'],
    labels: Int[np.ndarray, ' N'] | None,
    share: float | None = None,
    order: Shaped[np.ndarray, ' N'] | None = None,
) -> Bool[np.ndarray, ' N']:
    """Chooses which examples are held out for evaluation: True for these.

    `SHARE` of them are: those with the smallest keys. Of each class there are at least `LEAST`, or
    `LARGEST_SHARE` of a small class: an accuracy on a handful of images would mean little.

    Args:
      keys: of the examples, spread evenly over [0, 1).
      labels: of the examples, -1 where there is none; None where no example has one.
      share: held out instead of all this, and at least one of each class.
      order: the smallest come next where a class has too few; None is `keys`.
    """
    order = keys if order is None else order
    held_out = keys < (SHARE if share is None else share)
    for members in _by_class(labels) if labels is not None else ():
        least = 1 if share is not None else min(LEAST, int(LARGEST_SHARE * len(members)))
        lacking = max(least, 1) - held_out[members].sum()
        if lacking > 0 and len(members) > 1:
            others = members[~held_out[members]]
            held_out[others[np.argsort(order[others], kind='stable')[:lacking]]] = True
    if not held_out.any() or held_out.all():
        held_out = order == order.min()
    return held_out


def _by_class(labels: Int[np.ndarray, ' N']) -> list[Int[np.ndarray, ' n']]:
    """Returns the numbers of the examples of each class that occurs."""
    order = np.argsort(labels, kind='stable')
    order = order[labels[order] >= 0]
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if len(order) else []
