"""Features of many images by a trained encoder: `mae_jax.embed`, `mae-jax embed`."""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32
from tqdm import tqdm

from mae_jax.config.model import probed_depth, statistics
from mae_jax.data.sources.files import FileSource
from mae_jax.data.sources.folder import read_tree
from mae_jax.data.sources.make import check_source
from mae_jax.data.sources.protocol import Source
from mae_jax.data.sources.splits import EVAL_SPLITS, TRAIN_SPLITS
from mae_jax.errors import UserError
from mae_jax.files.paths import absolute, expand_home
from mae_jax.files.tensors import replacing, writing
from mae_jax.inference.images import Decoded, decode_all, reading
from mae_jax.interop.load import load_encoder
from mae_jax.interop.read import read_config
from mae_jax.models.vit import OUTPUTS
from mae_jax.tasks.preprocess import normalize
from mae_jax.training import sharding

SPLITS = (*TRAIN_SPLITS, *EVAL_SPLITS, 'eval')
"""Names of folders that hold a split, and are no classes."""

Images = str | os.PathLike | Sequence[str | os.PathLike] | Source


class Embedding(NamedTuple):
    """The features of images, row by row."""

    names: list[str]
    """Paths relative to the folder, files as they were given, or the names of a source."""
    features: Float32[np.ndarray, 'N ...']
    labels: Int32[np.ndarray, ' N']
    """Indices of `class_names`; -1 where there is no label."""
    class_names: list[str]
    unreadable: dict[str, str]
    """Name -> why the image could not be read; it has no row."""


def embed(
    path: str | os.PathLike,
    images: Images,
    *,
    output: str = 'mean',
    probe_block: int = -1,
    image_size: tuple[int, int] | int | None = None,
    batch_size: int = 64,
    dtype: str = 'float32',
) -> Embedding:
    """Computes the features of images by a trained encoder.

    Images are decoded by all processor cores and encoded by all devices, in batches; those that
    cannot be read are left out and named.

    Args:
      path: of the model, as for `mae_jax.load_encoder`.
      images: a folder; an image file, or several; or a source, such as an `ArraySource`. In a
        folder, all images below it are read; if they lie in folders `<class>/` or
        `<split>/<class>/`, these are the labels.
      output: as of `Encoder.features`: 'mean' of the patch tokens [D], 'cls' [D], 'tokens'
        [1 + N, D], or 'map' [H/P, W/P, D].
      probe_block: features are those after this block of the encoder, 0 the first, -1 the last; the
        final norm is applied to them, if the encoder has one.
      image_size: (height, width) in pixels, or the side of a square; None is that of training.
      batch_size: images that are encoded at once.
      dtype: dtype of activations, 'float32' or 'bfloat16'.

    Raises:
      UserError: there is no such model, no image, or none that can be read.
    """
    if output not in OUTPUTS:
        raise UserError(f'output={output!r} is unknown: choose {" | ".join(OUTPUTS)}.')
    if batch_size < 1:
        raise UserError(f'batch_size={batch_size} must be at least 1.')
    source, root = find_images(images)
    config = read_config(path)
    encoder, params = load_encoder(path, image_size=image_size, dtype=dtype)
    block = probed_depth(probe_block, encoder.depth) - 1
    mesh = sharding.make_mesh()
    batch_size = -(-batch_size // mesh.size) * mesh.size
    everywhere = sharding.replicated(mesh)
    params = jax.tree.map(lambda x: sharding.put(x, everywhere), params)

    def encode(params, batch):
        inputs = normalize(batch['image'], **statistics(config))
        options = dict(output=output, blocks=(block,), method='features')
        (features,) = encoder.apply({'params': params}, inputs, **options)
        return features.astype(jnp.float32)

    encode = sharding.on_mesh(encode, mesh)
    encode = jax.jit(encode, out_shardings=sharding.replicated(mesh))
    names, labels, chunks, unreadable = [], [], [], {}
    for examples in _in_batches(decode_all(source, **reading(config, image_size)), batch_size):
        readable = [each for each in examples if each.problem is None]
        names += [_relative(each.name, root) for each in readable]
        labels += [each.label for each in readable]
        problems = [each for each in examples if each.problem is not None]
        unreadable |= {_relative(each.name, root): str(each.problem) for each in problems}
        if readable:
            pixels = np.stack([each.pixels for each in readable])
            padding = (0, batch_size - len(pixels))  # one shape is compiled once
            pixels = np.pad(pixels, (padding, (0, 0), (0, 0), (0, 0)))
            batch = sharding.put_batch(mesh, {'image': pixels})
            chunks.append((encode(params, batch), len(readable)))
        if len(chunks) > 1:  # the devices compute one batch while the next is decoded
            chunks[-2] = _fetched(*chunks[-2])
    if not chunks:
        raise UserError(
            f'none of {len(source)} images can be read: {next(iter(unreadable.values()))}'
        )
    chunks[-1] = _fetched(*chunks[-1])
    features = np.concatenate([rows for rows, _ in chunks])
    class_names = list(source.class_names)
    return Embedding(names, features, np.array(labels, np.int32), class_names, unreadable)


def write_embedding(out: str | os.PathLike, embedding: Embedding) -> None:
    """Writes names, features, labels, class_names and unreadable as arrays of an .npz file.

    Raises:
      UserError: the file cannot be written.
    """
    arrays = {
        'names': np.array(embedding.names, np.str_),
        'features': embedding.features,
        'labels': embedding.labels,
        'class_names': np.array(embedding.class_names, np.str_),
        'unreadable': np.array(list(embedding.unreadable), np.str_),
    }
    with replacing(out) as fresh, writing(out), open(fresh, 'wb') as file:
        np.savez(file, **arrays)


def check_out(out: str | os.PathLike, overwrite: bool) -> None:
    """Raises a UserError, before anything is computed, for a file that must not be written."""
    path = absolute(out)
    if path.suffix.lower() != '.npz':
        raise UserError(f'{out} must end in .npz.')
    if path.exists() and not (overwrite and not path.is_dir()):
        raise UserError(f'{out} exists and is kept: choose another name, or add --overwrite.')


def find_images(images: Images) -> tuple[Source, str]:
    """Returns (the source of the images, the folder that their names are relative to, or '').

    Raises:
      UserError: there is no image.
    """
    if isinstance(images, str | os.PathLike):
        folder = expand_home(images)
        if os.path.isdir(folder):
            return read_tree(folder, SPLITS), folder
        return FileSource([folder]), ''
    if isinstance(images, Sequence) and all(isinstance(x, str | os.PathLike) for x in images):
        return FileSource(images), ''
    check_source('images are', images)
    return images, ''


def _in_batches(examples: Iterator[Decoded], size: int) -> Iterator[list[Decoded]]:
    """Yields the examples in lists of `size`, the last one shorter; a bar shows the progress."""
    batch = []
    for example in tqdm(examples, unit='image', leave=False, disable=not sys.stderr.isatty()):
        batch.append(example)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _fetched(features: jax.Array, count: int) -> tuple[np.ndarray, int]:
    return np.asarray(features)[:count], count


def _relative(name: str, root: str) -> str:
    return os.path.relpath(name, root) if root else name
