"""The order of examples, and how they become batches: a batch is a pure function of (seed, step).

The images of all steps form one endless sequence: epoch after epoch, each a new permutation. Image
i of step s is at position `s * images + i` of it, where a batch has so many `images`, whichever
process, worker or thread loads it; so a run may go on at any step, with any number of each. An
image gives `repeats` rows, one after another: mostly one.
"""

import functools
from collections.abc import Callable, Sequence

import grain
import numpy as np
from absl import logging

from mae_jax.data.images.decode import BadImage
from mae_jax.data.loader.read_ahead import Reading, join, read_ahead
from mae_jax.data.loader.stream import Stream
from mae_jax.data.transforms import views as transforms
from mae_jax.data.transforms.crops import BOXES, CROPS
from mae_jax.errors import UserError

MAX_NEIGHBOURS = 100  # this many unreadable images in a row are no accident
MIN_SEEN = 1000  # the share of bad ones among fewer images than this says little
FOREVER = 2**31  # steps


class Loader:
    """Shuffled, augmented training batches; see `make_loader`.

    Attributes:
      num_replaced: rows of unreadable images that on_error='skip' replaced in the batches handed
        out.
    """

    def __init__(self, load: Callable[[int], dict], images: int, numbers, reading: Reading):
        self._load = load
        self._images = images
        self._numbers = numbers
        self._reading = reading
        self._seen = 0
        self.num_replaced = 0

    def batch_at(self, step: int) -> dict[str, np.ndarray]:
        """The batch of one step, loaded here and now."""
        batch = join([self._load(step * self._images + number) for number in self._numbers])
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
        position = functools.partial(_position, self._numbers, self._images)
        return read_ahead(
            self._load,
            position,
            len(self._numbers),
            start_step,
            start_step + (FOREVER if num_steps is None else num_steps),
            self._reading,
            lambda batch: (batch.pop('replaced'), put(batch)),
            self._count,
        )

    def _count(self, loaded: tuple[np.ndarray, dict]) -> dict:
        replaced, batch = loaded
        self.num_replaced += int(replaced.sum())
        self._seen += len(replaced)
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
    repeats: int = 1,
    resize: str = 'host',
    canvas: int = 384,
    **reading,
) -> Loader:
    """Training batches `{'image': [b,H,W,C], 'label': int32 [b]}` of a source, b = len(rows).

    With resize='device' they are `{'canvas': [b/r,S,S,C], 'box': int32 [b,5], 'label'}`, where r
    is `repeats` and S the side of the `canvas`; see `transforms.train_canvas`.

    Args:
      source: see `sources`.
      batch_size: of all processes together.
      rows: which rows of the global batch this process loads; all the rows of an image.
      seed: of the order and of the augmentation, 0 <= seed < 2**32.
      image_size, channels, crop, crop_scale, crop_ratio, flip, augment, apply_exif, repeats: see
        `transforms.train_views`.
      resize: 'host' or 'device', where training images are cropped and resized.
      **reading: fields of `Reading`: threads, workers, prefetch, timeout_s, on_error,
        max_bad_share.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f'seed={seed} must be at least 0 and below 2**32.')
    if crop not in CROPS:
        raise UserError(f'dataset.crop={crop!r} must be {" or ".join(CROPS)}.')
    options = dict(
        seed=seed,
        channels=channels,
        crop=crop,
        crop_scale=tuple(crop_scale),
        crop_ratio=tuple(crop_ratio),
        flip=flip,
        apply_exif=apply_exif,
        repeats=repeats,
    )
    if resize == 'device':
        _check_device_resize(crop, augment, canvas)
        transform = functools.partial(transforms.train_canvas, canvas=canvas, **options)
    elif resize == 'host':
        options |= dict(image_size=tuple(image_size), augment=augment)
        transform = functools.partial(transforms.train_views, **options)
    else:
        raise UserError(f"dataset.resize={resize!r} must be 'host' or 'device'.")
    numbers = _image_numbers(np.asarray(rows), batch_size, repeats)
    reading = Reading(**reading)
    order = epochs(len(source), seed)
    load = functools.partial(_load_train, source, order, transform, reading.on_error, repeats)
    return Loader(load, batch_size // repeats, numbers, reading)


def _check_device_resize(crop: str, augment: transforms.Augment | None, canvas: int) -> None:
    if crop not in BOXES:
        raise UserError(
            f"dataset.resize='device' needs dataset.crop={' or '.join(BOXES)}, not {crop!r}."
        )
    if augment is not None:
        raise UserError(
            "dataset.augment works on what the host has cropped: set dataset.resize='host', or "
            "dataset.augment=''."
        )
    if canvas < 1:
        raise UserError(f'dataset.canvas={canvas} must be at least 1 pixel.')


def _image_numbers(rows: np.ndarray, batch_size: int, repeats: int) -> np.ndarray:
    """Which images of a global batch have these rows."""
    if repeats < 1 or batch_size % repeats:
        raise UserError(
            f'dataset.repeats={repeats} does not divide batch_size={batch_size}: choose one of its '
            'divisors.'
        )
    numbers = rows[::repeats] // repeats
    if not np.array_equal(rows, (numbers[:, None] * repeats + np.arange(repeats)).ravel()):
        raise UserError(
            f'dataset.repeats={repeats} rows of an image would be on several devices: choose a '
            'multiple of dataset.repeats times the number of devices as batch_size.'
        )
    return numbers


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
        _eval_rows,
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
    return read_ahead(load, position, len(rows), 0, steps, reading, dict, count)


def epochs(num_examples: int, seed: int) -> grain.MapDataset:
    """Position -> index of the example: one permutation after another, without end.

    `seed()` hashes the seed. Given to `shuffle` as it is, or to grain's `IndexSampler`, epoch 1 of
    a seed would be epoch 0 of the next one.
    """
    return grain.MapDataset.range(num_examples).seed(seed).shuffle().repeat()


def _load_train(
    source, order, transform: Callable, on_error: str, repeats: int, position: int
) -> dict:
    epoch = position // len(source)
    index = order[position]
    transform = functools.partial(transform, epoch=epoch, index=index)
    return _load(source, index, transform, on_error, repeats)


def _eval_rows(record: dict, **options) -> dict[str, np.ndarray]:
    return {'image': transforms.eval_transform(record, **options)[None]}


def _load_eval(source, examples: int, transform: Callable, on_error: str, position: int) -> dict:
    valid = position < examples
    index = position % examples * len(source) // examples
    example = _load(source, index, transform, on_error) | {'valid': np.array([valid])}
    if not valid:
        example |= {'label': np.array([-1], np.int32), 'replaced': np.array([False])}
    return example


def _load(source, index: int, transform: Callable, on_error: str, repeats: int = 1) -> dict:
    """The rows of example `index`, or for 'skip' of the next one after it that can be read."""
    tries = min(len(source), MAX_NEIGHBOURS)
    for tried in range(tries):
        try:
            record = source[(index + tried) % len(source)]
            rows = transform(record)
        except BadImage as error:
            if on_error == 'raise':
                hint = "Mend or remove it, or set dataset.on_error='skip'."
                raise UserError(f'{error} {hint}') from error
            last = error
            logging.warning('Replaced by its neighbour: %s', error)
            continue
        told = {'label': np.int32(record['label']), 'replaced': np.bool_(tried > 0)}
        return rows | {name: np.repeat(value, repeats) for name, value in told.items()}
    raise UserError(f'{tries} images in a row are unreadable; the last one: {last}')


def _position(numbers: np.ndarray, images: int, local: int) -> int:
    """Where the n-th image that this process loads is in the sequence of all."""
    step, place = divmod(local, len(numbers))
    return step * images + int(numbers[place])


def _check_bad_share(bad: int, seen: int, max_bad_share: float) -> None:
    if bad > max_bad_share * max(seen, MIN_SEEN):
        raise UserError(
            f'{bad} of {seen} images were unreadable, more than '
            f'dataset.max_bad_share={max_bad_share:g}; the warnings above name them.'
        )
