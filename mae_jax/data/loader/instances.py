"""Batches of images with the objects in them; `transforms/boxes.py` describes their arrays.

A batch of training has the views of `train_instances`, and label -1. One of evaluation has the rows
of `eval_instances`, label -1, `valid`, and `index`, int32 [b]: the number of the image in the
source, -1 in a row that fills up the last batch or replaces an image that cannot be read.
"""

import functools
from collections.abc import Sequence
from typing import Any

from mae_jax.data.loader.assembly import ON_HOST, Destination
from mae_jax.data.loader.batches import Loader, eval_stream, loader_of
from mae_jax.data.loader.examples import load_eval_instances
from mae_jax.data.loader.stream import Stream
from mae_jax.data.sources.protocol import Source
from mae_jax.data.transforms.boxes import eval_instances, train_instances


def instance_loader(
    source: Source,
    views: dict[str, Any],
    *,
    batch_size: int,
    rows: Sequence[int],
    seed: int,
    repeats: int = 1,
    **options,
) -> Loader:
    """Makes a loader of shuffled training batches.

    Args:
      source: of `InstanceExample`.
      views: arguments of `train_instances`.
      batch_size, rows, seed, repeats, **options: as of `make_loader`.

    Raises:
      UserError: as of `make_loader`.
    """
    transform = functools.partial(train_instances, repeats=repeats, **views)
    batches = dict(batch_size=batch_size, rows=rows, seed=seed, repeats=repeats)
    return loader_of(source, transform, **batches, **options)


def eval_instance_batches(
    source: Source,
    fields: dict[str, Any],
    *,
    batch_size: int,
    rows: Sequence[int],
    limit: int | None = None,
    put: Destination = ON_HOST,
    **options,
) -> Stream:
    """Starts to load every image once, in order, for evaluation.

    All processes get the same number of batches.

    Args:
      source: of `InstanceExample`.
      fields: arguments of `eval_instances`.
      batch_size, rows, limit, put, **options: as of `batches.eval_batches`.

    Raises:
      UserError: as of `make_loader`.
    """
    transform = functools.partial(eval_instances, **fields)
    batches = dict(batch_size=batch_size, rows=rows, limit=limit, put=put)
    return eval_stream(source, load_eval_instances, transform, **batches, **options)
