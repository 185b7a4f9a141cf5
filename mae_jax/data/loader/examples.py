"""Loads the rows of one example; imports neither JAX nor grain, for the worker processes."""

import functools
from collections.abc import Callable

import numpy as np
from absl import logging

from mae_jax.data.images.decode import BadImage
from mae_jax.data.loader.layout import NAME, REPLACED, Arrays
from mae_jax.data.sources.protocol import Source
from mae_jax.data.transforms import views
from mae_jax.errors import UserError

MAX_NEIGHBOURS = 100
"""The most unreadable images in a row that on_error='skip' tolerates."""


def load_train(
    source: Source, transform: Callable, on_error: str, repeats: int, item: tuple[int, int]
) -> Arrays:
    """Loads the rows of a training example; its item is (epoch, index)."""
    epoch, index = item
    transform = functools.partial(transform, epoch=epoch, index=index)
    return _load(source, index, transform, on_error, repeats)


def eval_rows(record: dict, **fields) -> Arrays:
    """Makes the row of an example for evaluation."""
    return {'image': views.eval_transform(record, **fields)[None]}


def load_eval(source: Source, transform: Callable, on_error: str, item: tuple[bool, int]) -> Arrays:
    """Loads the row of an example for evaluation; its item is (whether it is valid, index)."""
    valid, index = item
    rows = _load(source, index, transform, on_error) | {'valid': np.array([valid])}
    if not valid:
        rows |= {'label': np.array([-1], np.int32), REPLACED: np.array([False])}
    return rows


def load_eval_pair(
    source: Source, transform: Callable, on_error: str, item: tuple[bool, int]
) -> Arrays:
    """Loads the row of a pair for evaluation; one that replaces an unreadable pair is invalid."""
    rows = load_eval(source, transform, on_error, item)
    return rows | {'valid': rows['valid'] & ~rows[REPLACED]}


def load_eval_instances(
    source: Source, transform: Callable, on_error: str, item: tuple[bool, int]
) -> Arrays:
    """Loads the row of an image for detection, with its index in the source, -1 if not valid."""
    rows = load_eval_pair(source, transform, on_error, item)
    return rows | {'index': np.where(rows['valid'], item[1], -1).astype(np.int32)}


def unreadable(error: BadImage) -> UserError:
    """Returns the error of a run that an unreadable image ends."""
    return UserError(f"{error} Repair or remove it, or set dataset.on_error='skip'.")


def _load(
    source: Source, index: int, transform: Callable, on_error: str, repeats: int = 1
) -> dict[str, np.ndarray]:
    """Loads the rows of one example; with 'skip', of the next readable one instead."""
    tries = min(len(source), MAX_NEIGHBOURS)
    for attempt in range(tries):
        try:
            record = source[(index + attempt) % len(source)]
            rows = transform(record)
        except BadImage as error:
            if on_error == 'raise':
                raise unreadable(error) from error
            last_error = error
            logging.warning('Replaced by the next image: %s', error)
            continue
        scalars = {
            'label': np.int32(record['label']),
            REPLACED: np.bool_(attempt > 0),
        }
        scalars = {name: np.full(repeats, value) for name, value in scalars.items()}
        return rows | scalars | {NAME: record['name']}  # for the error of another dtype
    raise UserError(f'{tries} images in a row are unreadable; the last one: {last_error}')
