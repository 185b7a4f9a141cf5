"""The order of examples, and how they become batches: a batch is a pure function of (seed, step).

The examples of all steps form one endless sequence: epoch after epoch, each a new permutation.
Row r of step s is at position `s * batch_size + r` of it, whichever process, worker or thread
loads it; so a run may go on at any step, with any number of each.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from mae_jax.data import transforms
from mae_jax.data.decode import BadImage
from mae_jax.data.workers import Stream, start_worker
from mae_jax.errors import UserError

MAX_CHUNK = 8  # rows that one thread loads at a time, so that all of them share in a batch
MAX_NEIGHBOURS = 100  # this many unreadable images in a row are no accident
MIN_SEEN = 1000  # the share of bad ones among fewer images than this says little
FOREVER = 2**31  # steps


@dataclasses.dataclass(frozen=True)
class Reading:
    """How batches are read ahead, and what may go wrong on the way (config.dataset)."""

    threads: int = 8
    workers: int = 0
    prefetch: int = 2
    timeout_s: float = 300.0
    on_error: str = 'raise'
    max_bad_share: float = 0.01

    def __post_init__(self):
        if self.on_error not in ('raise', 'skip'):
            raise UserError(f'dataset.on_error={self.on_error!r} must be raise or skip.')
        for field, least in (('threads', 1), ('workers', 0), ('prefetch', 1)):
            if getattr(self, field) < least:
                value = getattr(self, field)
                raise UserError(f'dataset.{field}={value} must be at least {least}.')


class Loader:
    """Shuffled, augmented training batches; see `make_loader`.

    Attributes:
      num_replaced: unreadable images that on_error='skip' replaced in the batches handed out.
    """

    def __init__(self, load: Callable[[int], dict], batch_size: int, rows, reading: Reading):
        self._load = load
        self._batch_size = batch_size
        self._rows = rows
        self._reading = reading
        self._seen = 0
        self.num_replaced = 0

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """The batch of one step, loaded here and now."""
        examples = [self._load(step * self._batch_size + row) for row in self._rows]
        batch = _stack(examples)
        del batch['replaced']
        return batch

    def iterate(
        self, start_step: int, num_steps: int | None = None, put: Callable[[dict], dict] = dict
    ) -> Stream:
        """The batches of steps start_step, start_step + 1, ..., loaded ahead of their use.

        Args:
          start_step: the first step.
          num_steps: how many; None: without end.
          put: applied to each batch ahead of its use, to start its way to the devices.

        Returns:
          An iterator and context manager, with `close()`. Its `next` raises UserError for an
          unreadable image, too many of them, a dead worker and a stall.
        """
        position = functools.partial(_position, self._rows, self._batch_size)
        return _stream(
            self._load,
            position,
            len(self._rows),
            start_step,
            start_step + (FOREVER if num_steps is None else num_steps),
            self._reading,
            lambda batch: (int(batch.pop('replaced').sum()), put(batch)),
            self._count,
        )

    def _count(self, loaded: tuple[int, dict]) -> dict:
        replaced, batch = loaded
        self.num_replaced += replaced
        self._seen += len(self._rows)
        _check_bad_share(self.num_replaced, self._seen, self._reading.max_bad_share)
        return batch


def make_loader(
    source,
    *,
    batch_size: int,
    rows: Sequence[int],
    seed: int,
    image_size: tuple[int, int],
    channels: int = 3,
    crop: str = 'retry',
    crop_scale: tuple[float, float] = (0.2, 1.0),
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
    augment: transforms.Augment | None = None,
    apply_exif: bool = False,
    **reading,
) -> Loader:
    """Training batches `{'image': [b,H,W,C], 'label': int32 [b]}` of a source, b = len(rows).

    Args:
      source: see `sources`.
      batch_size: of all processes together.
      rows: which rows of the global batch this process loads.
      seed: of the order and of the augmentation, 0 <= seed < 2**32.
      image_size, channels, crop, crop_scale, crop_ratio, flip, augment, apply_exif: see
        `transforms`.
      **reading: fields of `Reading`: threads, workers, prefetch, timeout_s, on_error,
        max_bad_share.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f'seed={seed} must be at least 0 and below 2**32.')
    if crop not in transforms.CROPS:
        raise UserError(f'dataset.crop={crop!r} must be {" or ".join(transforms.CROPS)}.')
    transform = functools.partial(
        transforms.train_transform,
        seed=seed,
        image_size=tuple(image_size),
        channels=channels,
        crop=crop,
        crop_scale=tuple(crop_scale),
        crop_ratio=tuple(crop_ratio),
        flip=flip,
        augment=augment,
        apply_exif=apply_exif,
    )
    reading = Reading(**reading)
    order = epochs(len(source), seed)
    load = functools.partial(_load_train, source, order, transform, reading.on_error)
    return Loader(load, batch_size, np.asarray(rows), reading)


def eval_batches(
    source,
    *,
    batch_size: int,
    rows: Sequence[int],
    image_size: tuple[int, int],
    channels: int = 3,
    apply_exif: bool = False,
    crop_share: float | None = None,
    limit: int | None = None,
    **reading,
) -> Stream:
    """Every example once, in order: `{'image', 'label', 'valid': bool [b]}`.

    The last batch is filled up with examples whose `valid` is False and label -1. All processes
    get the same number of batches.

    Args:
      limit: at most so many examples, evenly spread over the source.
      crop_share: see `transforms.eval_transform`.
      source, batch_size, rows, image_size, channels, apply_exif, **reading: as in `make_loader`.
    """
    transform = functools.partial(
        transforms.eval_transform,
        image_size=tuple(image_size),
        channels=channels,
        apply_exif=apply_exif,
        crop_share=crop_share,
    )
    reading = Reading(**reading)
    examples = len(source) if limit is None else min(limit, len(source))
    load = functools.partial(_load_eval, source, examples, transform, reading.on_error)
    rows = np.asarray(rows)
    position = functools.partial(_position, rows, batch_size)
    replaced = 0

    def count(batch):
        nonlocal replaced
        replaced += int(batch.pop('replaced').sum())
        _check_bad_share(replaced, examples, reading.max_bad_share)
        return batch

    steps = -(-examples // batch_size)
    return _stream(load, position, len(rows), 0, steps, reading, dict, count)


def epochs(num_examples: int, seed: int) -> grain.MapDataset:
    """Position -> index of the example: one permutation after another, without end.

    `seed()` hashes the seed. Given to `shuffle` as it is, or to grain's `IndexSampler`, epoch 1 of
    a seed would be epoch 0 of the next one.
    """
    return grain.MapDataset.range(num_examples).seed(seed).shuffle().repeat()


def _load_train(source, order, transform: Callable, on_error: str, position: int) -> dict:
    epoch = position // len(source)
    index = order[position]
    transform = functools.partial(transform, epoch=epoch, index=index)
    return _load(source, index, transform, on_error)


def _load_eval(source, examples: int, transform: Callable, on_error: str, position: int) -> dict:
    valid = position < examples
    index = position % examples * len(source) // examples
    example = _load(source, index, transform, on_error) | {'valid': np.bool_(valid)}
    if not valid:
        example |= {'label': np.int32(-1), 'replaced': np.int32(0)}
    return example


def _load(source, index: int, transform: Callable, on_error: str) -> dict:
    """Example `index`, or for 'skip' the next one after it that can be read."""
    tries = min(len(source), MAX_NEIGHBOURS)
    for tried in range(tries):
        try:
            record = source[(index + tried) % len(source)]
            image = transform(record)
        except BadImage as error:
            if on_error == 'raise':
                hint = "Mend or remove it, or set dataset.on_error='skip'."
                raise UserError(f'{error} {hint}') from error
            last = error
            logging.warning('Replaced by its neighbour: %s', error)
            continue
        label = np.int32(record['label'])
        return {'image': image, 'label': label, 'replaced': np.int32(tried > 0)}
    raise UserError(f'{tries} images in a row are unreadable; the last one: {last}')


def _position(rows: np.ndarray, batch_size: int, local: int) -> int:
    """Where the n-th example that this process loads is in the sequence of all."""
    step, row = divmod(local, len(rows))
    return step * batch_size + int(rows[row])


def _stream(
    load: Callable[[int], dict],
    position: Callable[[int], int],
    rows: int,
    start_step: int,
    stop_step: int,
    reading: Reading,
    prepare: Callable[[dict], Any],
    finish: Callable[[Any], dict],
) -> Stream:
    """Steps start_step ... stop_step of `load(position(n))`, in batches of `rows`."""
    chunk = next(size for size in range(min(rows, MAX_CHUNK), 0, -1) if rows % size == 0)
    chunks_ahead = -(-reading.prefetch * rows // chunk // max(reading.workers, 1))

    def make(register: str) -> grain.IterDataset:
        numbers = grain.MapDataset.range(start_step * rows, stop_step * rows)
        chunks = numbers.map(position).map(load).batch(chunk, batch_fn=_stack)
        options = grain.ReadOptions(
            num_threads=reading.threads,
            prefetch_buffer_size=max(reading.threads, chunks_ahead),
        )
        dataset = chunks.to_iter_dataset(options)
        if reading.workers:
            if not flags.FLAGS.is_parsed():  # a notebook or a test: grain reads flags of its own
                flags.FLAGS.mark_as_parsed()
            dataset = dataset.mp_prefetch(
                grain.multiprocessing.MultiprocessingOptions(
                    num_workers=reading.workers, per_worker_buffer_size=chunks_ahead
                ),
                worker_init_fn=functools.partial(start_worker, register),
            )
        return dataset.batch(rows // chunk, batch_fn=_concatenate)

    return Stream(make, prepare, finish, reading.timeout_s)


def _stack(examples: Sequence[dict]) -> dict[str, np.ndarray]:
    _check_dtypes(examples)
    return {key: np.stack([example[key] for example in examples]) for key in examples[0]}


def _concatenate(chunks: Sequence[dict]) -> dict[str, np.ndarray]:
    _check_dtypes(chunks)
    return {key: np.concatenate([chunk[key] for chunk in chunks]) for key in chunks[0]}


def _check_dtypes(parts: Sequence[dict]) -> None:
    """NumPy would make one dtype of several without a word, and the scale be wrong for some."""
    dtypes = sorted({str(part['image'].dtype) for part in parts})
    if len(dtypes) > 1:
        raise UserError(f'Images of several depths ({", ".join(dtypes)}) cannot share a batch.')


def _check_bad_share(bad: int, seen: int, max_bad_share: float) -> None:
    if bad > max_bad_share * max(seen, MIN_SEEN):
        raise UserError(
            f'{bad} of {seen} images were unreadable, more than '
            f'dataset.max_bad_share={max_bad_share:g}; the warnings above name them.'
        )
