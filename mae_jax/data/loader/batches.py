"""Training and evaluation batches of a source: the entry of the input pipeline.

A batch is a pure function of (seed, step), and the pixels of an example are one of (seed, epoch,
index). `order.py` defines the order. Every image gives `repeats` consecutive rows of a batch.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from mae_jax.data.loader.assembly import ON_HOST, Destination, Loaded
from mae_jax.data.loader.examples import eval_rows, load_eval, load_train
from mae_jax.data.loader.layout import REPLACED, Arrays, Memory, layout_of
from mae_jax.data.loader.order import Share, epochs, share_of_rows
from mae_jax.data.loader.read_ahead import ReadOptions, read_ahead
from mae_jax.data.loader.stream import Stream
from mae_jax.data.sources.protocol import Source
from mae_jax.data.transforms import views
from mae_jax.data.transforms.crops import BOXES, CROPS
from mae_jax.errors import UserError

MIN_SEEN = 1000
"""The share of unreadable images is taken of at least this many: among the first it says little."""
FOREVER = 2**31
"""Number of steps of a stream without an end."""


def make_loader(
    source: Source,
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
    augment: views.Augment | None = None,
    apply_exif: bool = False,
    bands: tuple[int, ...] | None = None,
    nodata: float | None = None,
    repeats: int = 1,
    resize: str = 'host',
    canvas: int = 384,
    **options,
) -> 'Loader':
    """Makes a loader of shuffled, augmented training batches.

    Its batches are `{'image': [b, H, W, C], 'label': int32 [b]}`, b = len(rows), with images of
    uint8 or the dtype of the source. With resize='device' they are `{'canvas': [b/r, S, S, C],
    'box': int32 [b, 5], 'label': int32 [b]}`, where r is `repeats` and S is `canvas`; see
    `views.train_canvas`.

    Args:
      source: the training examples.
      batch_size: rows of a global batch, of all processes together.
      rows: the rows of the global batch that this process loads; all rows of an image or none.
      seed: of the order and of the augmentation, 0 <= seed < 2**32.
      image_size, channels, crop, crop_scale, crop_ratio, flip, augment, repeats: see
        `views.train_views`.
      apply_exif, bands, nodata: see `decode`.
      resize: 'host' or 'device', where training images are cropped and resized.
      canvas: side in pixels of the square that holds an image with resize='device'.
      **options: fields of `ReadOptions`: threads, workers, prefetch, timeout_s, on_error,
        max_bad_share.

    Raises:
      UserError: an argument has a value that is not allowed, or two of them exclude each other.
    """
    if crop not in CROPS:
        raise UserError(f'dataset.crop={crop!r} must be {" or ".join(CROPS)}.')
    fields = dict(
        channels=channels,
        crop=crop,
        crop_scale=tuple(crop_scale),
        crop_ratio=tuple(crop_ratio),
        flip=flip,
        apply_exif=apply_exif,
        bands=bands,
        nodata=nodata,
        repeats=repeats,
    )
    if resize == 'device':
        _check_device_resize(crop, augment, canvas)
        transform = functools.partial(views.train_canvas, canvas=canvas, **fields)
    elif resize == 'host':
        fields |= dict(image_size=tuple(image_size), augment=augment)
        transform = functools.partial(views.train_views, **fields)
    else:
        raise UserError(f"dataset.resize={resize!r} must be 'host' or 'device'.")
    batches = dict(batch_size=batch_size, rows=rows, seed=seed, repeats=repeats)
    return loader_of(source, transform, **batches, **options)


def loader_of(
    source: Source,
    transform: Callable[..., Arrays],
    *,
    batch_size: int,
    rows: Sequence[int],
    seed: int,
    repeats: int = 1,
    **options,
) -> 'Loader':
    """Makes a loader of shuffled batches of what a transform makes of each example.

    Args:
      transform: (example, seed=, epoch=, index=) -> `repeats` rows of each array; picklable.
      source, batch_size, rows, seed, repeats, **options: as of `make_loader`.

    Raises:
      UserError: as of `make_loader`.
    """
    if not 0 <= seed < 2**32:
        raise UserError(f'seed={seed} must be at least 0 and below 2**32.')
    transform = functools.partial(transform, seed=seed)
    share = share_of_rows(rows, batch_size, repeats)
    options = ReadOptions(**options)
    order = epochs(len(source), seed)
    load = functools.partial(load_train, source, transform, options.on_error, repeats)
    return Loader(load, lambda i: (i // len(source), order[i]), share, options)


def _check_device_resize(crop: str, augment: views.Augment | None, canvas: int) -> None:
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


class Loader:
    """Shuffled, augmented training batches; made by `make_loader`.

    Attributes:
      num_replaced: rows of unreadable images that on_error='skip' has replaced in the batches
        handed out by `iterate`.
    """

    def __init__(
        self,
        load: Callable[[tuple[int, int]], Arrays],
        item: Callable[[int], tuple[int, int]],
        share: Share,
        options: ReadOptions,
    ):
        self._load = load
        self._item = item
        self._share = share
        self._options = options
        self._seen = 0
        self.num_replaced = 0

    def batch_at(self, step: int) -> Arrays:
        """Loads the batch of one step in the calling thread; see `make_loader` for its content."""
        size = len(self._share)
        images = [
            self._load(self._item(self._share.position(step * size + i))) for i in range(size)
        ]
        layout = layout_of(images[0], size)
        arrays = layout.arrays(Memory().take(layout.nbytes()))
        for number, rows in enumerate(images):
            layout.write(arrays, number, rows)
        del arrays[REPLACED]
        return arrays

    def iterate(
        self, start_step: int, num_steps: int | None = None, put: Destination = ON_HOST
    ) -> Stream:
        """Starts to load the batches of steps start_step, start_step + 1, ... ahead of their use.

        Args:
          start_step: the first step.
          num_steps: how many; None for a stream without end.
          put: where the batches go, ahead of their use.

        Returns:
          An iterator and context manager, with `close()`. Its `next` raises UserError where an
          image is unreadable (or, with on_error='skip', too many are), and where a worker process
          dies or nothing comes for `timeout_s`.
        """
        return read_ahead(
            self._load,
            self._item,
            self._share,
            start_step=start_step,
            stop_step=start_step + (FOREVER if num_steps is None else num_steps),
            options=self._options,
            destination=put,
            finish=self._count_replaced,
        )

    def _count_replaced(self, loaded: Loaded) -> dict:
        self.num_replaced += loaded.replaced
        self._seen += loaded.rows
        check_bad_share(self.num_replaced, self._seen, self._options.max_bad_share)
        return loaded.batch


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    rows: Sequence[int],
    image_size: tuple[int, int],
    channels: int = 3,
    apply_exif: bool = False,
    bands: tuple[int, ...] | None = None,
    nodata: float | None = None,
    crop_share: float | None = None,
    limit: int | None = None,
    put: Destination = ON_HOST,
    **options,
) -> Stream:
    """Starts to load every example once, in order, for evaluation.

    The last batch is filled up with rows whose `valid` is False and whose label is -1. All
    processes get the same number of batches.

    Args:
      limit: at most this many examples, evenly spread over the source.
      crop_share: see `views.eval_transform`.
      put: as of `Loader.iterate`.
      source, batch_size, rows, image_size, channels, apply_exif, bands, nodata, **options: as of
        `make_loader`.

    Returns:
      An iterator, as of `Loader.iterate`, over `{'image': [b, H, W, C], 'label': int32 [b],
      'valid': bool [b]}`.

    Raises:
      UserError: as of `make_loader`.
    """
    transform = functools.partial(
        eval_rows,
        image_size=tuple(image_size),
        channels=channels,
        apply_exif=apply_exif,
        bands=bands,
        nodata=nodata,
        crop_share=crop_share,
    )
    batches = dict(batch_size=batch_size, rows=rows, limit=limit, put=put)
    return eval_stream(source, load_eval, transform, **batches, **options)


def eval_stream(
    source: Source,
    load: Callable[..., Arrays],
    transform: Callable[[dict], Arrays],
    *,
    batch_size: int,
    rows: Sequence[int],
    limit: int | None = None,
    put: Destination = ON_HOST,
    **options,
) -> Stream:
    """Starts to load a row of every example, once and in order, by one of `examples.py`.

    Args:
      load: (source, transform, on_error, (whether it is valid, index)) -> a row.
      transform: example -> what `load` makes the row of; picklable.
      source, batch_size, rows, limit, put, **options: as of `eval_batches`.

    Returns:
      An iterator over batches, filled up as those of `eval_batches`.

    Raises:
      UserError: as of `make_loader`.
    """
    options = ReadOptions(**options)
    examples = len(source) if limit is None else min(limit, len(source))
    replaced = 0

    def count_replaced(loaded: Loaded) -> dict:
        nonlocal replaced
        replaced += loaded.replaced
        check_bad_share(replaced, examples, options.max_bad_share)
        return loaded.batch

    return read_ahead(
        functools.partial(load, source, transform, options.on_error),
        lambda i: (i < examples, i % examples * len(source) // examples),
        Share(np.asarray(rows), batch_size),
        start_step=0,
        stop_step=-(-examples // batch_size),
        options=options,
        destination=put,
        finish=count_replaced,
    )


def check_bad_share(bad: int, seen: int, max_bad_share: float) -> None:
    """Raises a UserError where too large a share of the images that were seen is unreadable."""
    if bad > max_bad_share * max(seen, MIN_SEEN):
        raise UserError(
            f'{bad} of {seen} images were unreadable, more than '
            f'dataset.max_bad_share={max_bad_share:g}; the warnings above name them.'
        )
