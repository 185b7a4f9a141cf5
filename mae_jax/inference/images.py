"""Image files as a trained model takes them: decoded, resized, cropped, normalised."""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped
from ml_collections import ConfigDict

from mae_jax.config import model as model_config
from mae_jax.config.data import decoding
from mae_jax.data.images.decode import BadImage
from mae_jax.data.sources.folder import FolderSource
from mae_jax.data.sources.protocol import Source
from mae_jax.data.transforms.views import eval_transform
from mae_jax.errors import UserError
from mae_jax.interop.read import read_config
from mae_jax.runtime.cores import num_cores
from mae_jax.tasks.preprocess import normalize

AHEAD = 256
"""Images that are decoded ahead of their use."""


class Decoded(NamedTuple):
    """An example whose image was decoded, or could not be."""

    name: str
    label: int
    pixels: Shaped[np.ndarray, 'H W C'] | None
    """Of the dtype of the source."""
    problem: BadImage | None


def load_images(
    path: str | os.PathLike,
    files: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    image_size: tuple[int, int] | int | None = None,
) -> Float32[np.ndarray, 'B H W C']:
    """Loads image files as a trained model takes them, in evaluation.

        encoder, params = mae_jax.load_encoder(path)
        images = mae_jax.load_images(path, ['a.jpg', 'b.jpg'])
        features = encoder.apply({'params': params}, images, method='features', output='mean')

    They are decoded by all processor cores, resized and cropped in the centre (bicubic; up to 224
    pixels the crop is 7/8 of the image, unless the model's `dataset.eval_crop_share` is another
    share), and normalised by the model's mean and std.

    Args:
      path: of the model, as for `load_encoder`.
      files: an image file, or several.
      image_size: (height, width) in pixels, or the side of a square, as given to `load_encoder`;
        None is that of training.

    Returns:
      float32 [B, H, W, C].

    Raises:
      UserError: there is no such model, or a file cannot be read as an image; the message names it.
    """
    config = read_config(path)
    files = [files] if isinstance(files, str | os.PathLike) else files
    pixels = read_images(files, **reading(config, image_size))
    return np.asarray(normalize(pixels, **model_config.statistics(config)))


def reading(config: ConfigDict, image_size: tuple[int, int] | int | None = None) -> dict[str, Any]:
    """Returns the options of `eval_transform` of a model's config.

    Args:
      image_size: as of `load_images`.
    """
    data = config.dataset
    if image_size is not None:
        config = ConfigDict({'image_size': np.ravel(image_size).tolist()})
    return dict(
        image_size=model_config.image_size(config),
        crop_share=data.get('eval_crop_share'),
        **decoding(data),
    )


def read_images(
    paths: Sequence[str | os.PathLike], **options: Any
) -> Shaped[np.ndarray, 'B H W C']:
    """Reads image files, resized and cropped as for evaluation.

    Args:
      paths: of image files.
      **options: of `eval_transform`: image_size, crop_share, and those of `decode`.

    Returns:
      Images of the files' dtype.

    Raises:
      UserError: no paths are given, or a file cannot be read as an image; the message names it.
    """
    if not paths:
        raise UserError('there is no image to look at: name one or more image files.')
    images = []
    for example in decode_all(FolderSource('', [os.fspath(p) for p in paths], None, []), **options):
        if example.problem:
            raise example.problem
        images.append(example.pixels)
    return np.stack(images)


def decode_all(source: Source, **options: Any) -> Iterator[Decoded]:
    """Decodes every example of a source in order, on all processor cores.

    Args:
      source: examples.
      **options: of `eval_transform`.

    Yields:
      Each example, also those whose image cannot be read.

    Raises:
      UserError: images are of several dtypes, which one scale does not suit; it names one of each.
    """
    decode = functools.partial(_decode, source, functools.partial(eval_transform, **options))
    first = None
    with ThreadPoolExecutor(num_cores()) as threads:
        for example in _ahead(threads, decode, len(source)):
            if example.pixels is not None:
                first = first or example
                if example.pixels.dtype != first.pixels.dtype:
                    raise UserError(
                        f'images of several depths: {first.name} is {first.pixels.dtype} and '
                        f'{example.name} {example.pixels.dtype}: convert them to one.'
                    )
            yield example


def _ahead(threads: ThreadPoolExecutor, decode: Callable[[int], Decoded], count: int) -> Iterator:
    """Yields decode(0), decode(1), ..., with at most `AHEAD` of them begun and not yet used."""
    waiting = []
    try:
        for index in range(count):
            waiting.append(threads.submit(decode, index))
            if len(waiting) == AHEAD:
                yield waiting.pop(0).result()
        while waiting:
            yield waiting.pop(0).result()
    finally:
        for future in waiting:
            future.cancel()


def _decode(source: Source, transform: Callable[[Any], np.ndarray], index: int) -> Decoded:
    try:
        example = source[index]
    except BadImage as problem:  # the file cannot be read, and its message names it
        return Decoded(_name(source, index), -1, None, problem)
    name, label = example['name'], example['label']
    try:
        return Decoded(name, label, transform(example), None)
    except BadImage as problem:
        return Decoded(name, label, None, problem)


def _name(source: Source, index: int) -> str:
    files = getattr(source, 'files', None)
    return str(index) if files is None else os.path.join(source.root, files[index])
