"""Batches of pairs of an image and a mask for evaluation: whole images, a canvas for each batch."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import logging

from mae_jax.data.images.decode import BadImage
from mae_jax.data.images.jpeg import Size
from mae_jax.data.loader.assembly import ON_HOST, Destination, Loaded
from mae_jax.data.loader.batches import check_bad_share
from mae_jax.data.loader.canvases import Group, Resized, group
from mae_jax.data.loader.examples import load_eval_pair, unreadable
from mae_jax.data.loader.layout import Arrays
from mae_jax.data.loader.order import Share
from mae_jax.data.loader.read_ahead import ReadOptions, read_ahead
from mae_jax.data.loader.stream import Stream
from mae_jax.data.sources.protocol import PairedExample, Source
from mae_jax.data.transforms.pairs import record_mask
from mae_jax.errors import UserError

READERS = 16
"""Threads that read the sizes of masks: they wait for the disk."""


@dataclasses.dataclass(frozen=True)
class EvalPlan:
    """Which pairs are evaluated, and on which canvases.

    Attributes:
      groups: of pairs that share a canvas.
      unread: how many were left out, because their masks cannot be read.
    """

    groups: list[Group]
    unread: int

    @property
    def examples(self) -> int:
        """Returns how many pairs there are, those that are left out with them."""
        return self.unread + sum(len(each.images) for each in self.groups)


def plan_eval(
    source: Source,
    *,
    batch_size: int,
    resize: Callable[[Size], Size],
    canvas: Callable[[Size], Size],
    limit: int | None = None,
    on_error: str = 'raise',
) -> EvalPlan:
    """Plans the evaluation of every pair of a source, the same for all processes.

    A method `mask_size` of the source, index -> (height, width), spares reading the masks.

    Args:
      source: of pairs.
      batch_size: of a global batch.
      resize: (height, width) of an image -> that in which it is evaluated.
      canvas: the latter -> (height, width) of the array that holds it.
      limit: at most this many pairs, evenly spread over the source.
      on_error: 'raise', or 'skip' to leave out unreadable masks.

    Raises:
      UserError: a mask cannot be read, or with 'skip' none can.
    """
    examples = len(source) if limit is None else min(limit, len(source))
    indices = [i * len(source) // examples for i in range(examples)]
    with ThreadPoolExecutor(READERS) as threads:
        sizes = list(threads.map(functools.partial(_mask_size, source, on_error), indices))
    images = [
        Resized(index, size, resize(size))
        for index, size in zip(indices, sizes, strict=True)
        if size
    ]
    if not images:
        raise UserError('no pair of dataset.eval_split can be read; the warnings above say why.')
    return EvalPlan(group(images, canvas, batch_size), examples - len(images))


def _mask_size(source: Source, on_error: str, index: int) -> Size | None:
    try:
        if hasattr(source, 'mask_size'):
            return source.mask_size(index)
        return record_mask(source[index])[1].shape
    except BadImage as error:
        if on_error == 'raise':
            raise unreadable(error) from error
        logging.warning('Left out: %s', error)
    return None


def eval_pairs(
    source: Source,
    plan: EvalPlan,
    transform: Callable[..., Arrays],
    *,
    batch_size: int,
    rows: Sequence[int],
    put: Destination = ON_HOST,
    workers: Callable[[int], int] = lambda images: 0,
    **options,
) -> 'Streams':
    """Starts to load every pair of a plan once, for evaluation.

    The last batch of each group is filled up with rows whose `valid` is False. All processes get
    the same number of batches. With on_error='skip' an unreadable pair is not valid either.

    Args:
      source: of pairs.
      plan: made for this source and batch size.
      transform: `pairs.eval_pair` without sizes: its other arguments are set.
      batch_size: rows of a global batch, of all processes together.
      rows: those that this process loads.
      put: where the batches go, ahead of their use.
      workers: number of images that this process loads of a group -> worker processes for it.
      **options: other fields of `ReadOptions`.

    Returns:
      An iterator over batches as `transforms/pairs.py` describes them.

    Raises (from `next`):
      UserError: as of `Loader.iterate`.
    """
    ReadOptions(**options)  # raises before the first group starts
    replaced = plan.unread
    share = Share(np.asarray(rows), batch_size)

    def count_replaced(loaded: Loaded) -> dict:
        nonlocal replaced
        replaced += loaded.replaced
        check_bad_share(replaced, plan.examples, options.get('max_bad_share', 0.01))
        return loaded.batch

    def start(members: Group) -> Stream:
        count = len(members.images)
        read = ReadOptions(workers=workers(count * len(share) // batch_size), **options)
        fields = dict(canvas=members.canvas, mask_canvas=members.mask_canvas)
        row = functools.partial(_row, functools.partial(transform, **fields))
        return read_ahead(
            functools.partial(load_eval_pair, _Members(source, members), row, read.on_error),
            lambda i: (i < count, i % count),
            share,
            start_step=0,
            stop_step=-(-count // batch_size),
            options=read,
            destination=put,
            finish=count_replaced,
        )

    return Streams(functools.partial(start, members) for members in plan.groups)


@dataclasses.dataclass(frozen=True)
class _Members:
    """The pairs of a group as a source; `size` of an example is what it is resized to."""

    source: Source
    group: Group

    def __len__(self) -> int:
        return len(self.group.images)

    def __getitem__(self, index: int) -> PairedExample:
        image = self.group.images[index]
        return {**self.source[image.index], 'size': image.size}


def _row(transform: Callable[..., Arrays], record: dict) -> Arrays:
    return transform(record, size=record['size'])


class Streams:
    """Iterates over one stream after another, with the interface of `stream.Stream`.

    Args:
      starts: functions that start the streams, each called when the one before has ended.
    """

    def __init__(self, starts: Iterable[Callable[[], Stream]]):
        self._starts, self._stream = iter(starts), None

    def __iter__(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def __next__(self):
        while True:
            if self._stream is None:
                self._stream = next(self._starts)()
            try:
                return next(self._stream)
            except StopIteration:
                self._stream = None

    def close(self) -> None:
        """Ends the stream that is read, and starts no other."""
        self._starts = iter(())
        if self._stream is not None:
            self._stream.close()
            self._stream = None
