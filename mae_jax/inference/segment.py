"""The class of every pixel of image files, by a trained segmenter."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Int, Int32, Integer
from ml_collections import ConfigDict

from mae_jax.config.data import decoding
from mae_jax.config.model import image_size, make_segmenter, statistics
from mae_jax.config.pairs import short_and_long, values_of, window_stride
from mae_jax.data.images.arrays import as_array
from mae_jax.data.images.decode import decode
from mae_jax.data.images.masks import read_mask
from mae_jax.data.sources.classes import voc_colours
from mae_jax.data.sources.folder import FolderSource
from mae_jax.data.sources.listing import is_image
from mae_jax.data.sources.paired_folders import IMAGES, MASKS
from mae_jax.data.sources.protocol import Example
from mae_jax.data.transforms.crops import decoded
from mae_jax.data.transforms.pairs import check_one_shape, fitted, padded, resized_image
from mae_jax.errors import UserError
from mae_jax.files.limits import read_json, reason
from mae_jax.files.paths import absolute
from mae_jax.interop.modules import join_first, shape_differences
from mae_jax.interop.read import read_model
from mae_jax.interop.trained import CLASS_COLOURS
from mae_jax.models.segmentation.segmenter import Segmenter
from mae_jax.models.segmentation.windows import map_enlarged, slide
from mae_jax.tasks.preprocess import normalize
from mae_jax.visualization.drawing import Columns
from mae_jax.visualization.segmentation import Colours, segmentation_columns


class Trained(NamedTuple):
    """A trained segmenter."""

    model: Segmenter
    variables: Any
    """Parameters and running statistics."""
    config: ConfigDict
    colours: Colours


def load_segmenter(path: str | os.PathLike) -> Trained:
    """Loads a segmenter.

    Args:
      path: a work directory, or one of its checkpoints.

    Raises:
      UserError: there is no such model, it is damaged, or it does not segment.
    """
    trained = read_model(path)
    if trained.config.get('task') != 'segment':
        raise UserError(
            f'{path} does not segment images: give a run of configs/segment.py, or another --show.'
        )
    config = trained.config.copy_and_resolve_references()
    config.model.update(remat='none', scan=False, attention='plain', dtype='float32')
    try:
        classes = trained.params['head']['classifier']['bias'].size
        model = make_segmenter(config, classes)
        images = jnp.zeros((1, *image_size(config), config.dataset.channels))
        expected = _shapes(jax.eval_shape(model.init, jax.random.key(0), images))
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    except Exception as error:  # an untrusted config can raise errors of any kind
        raise UserError(f'{path} is damaged: its config is not that of a model.') from error
    variables = {'params': trained.params} | trained.model_state
    if problems := shape_differences(_shapes(variables), expected):
        raise UserError(f'{path} does not hold the model of its config: {join_first(problems)}.')
    variables = jax.tree.map(jnp.asarray, variables)
    return Trained(model, variables, config, _colours(path, classes))


def segment(
    path: str | os.PathLike, images: str | os.PathLike | Sequence[str | os.PathLike]
) -> list[Int32[np.ndarray, '_H _W']]:
    """Returns the number of the class of every pixel of image files, a map for each.

        masks = mae_jax.segment('runs/segment', ['a.jpg', 'b.jpg'])

    Images are resized as for evaluation, in which windows slide over them, and their logits back
    to the size of the file.

    Args:
      path: as for `load_segmenter`.
      images: an image file, or several.

    Raises:
      UserError: the model cannot be loaded, or an image cannot be read.
    """
    images = [images] if isinstance(images, str | os.PathLike) else images
    trained = load_segmenter(path)
    pixels, sizes = _read_all(images, trained.config)
    predicted = _predict(trained, pixels, sizes)
    return [array[:height, :width] for array, (height, width) in zip(predicted, sizes, strict=True)]


def segmented(path: str | os.PathLike, images: Sequence[str | os.PathLike]) -> Columns:
    """Draws images and the classes of their pixels, resized as for evaluation.

    The truth is drawn too where it is known of all of them: where each image lies in a folder
    images/, and its mask in annotations/, as training data do.

    Args:
      path: of the model, as for `load_segmenter`.
      images: image files.

    Raises:
      UserError: the model cannot be loaded, or an image or a mask cannot be read.
    """
    trained = load_segmenter(path)
    config, dataset = trained.config, trained.config.dataset
    pixels, sizes = _read_all(images, config)
    truth = _truth(images, sizes, config, len(trained.colours))
    size = np.array([image.shape[:2] for image in pixels], np.int32)
    predicted = _predict(trained, pixels, size)
    whole = np.stack([padded(image, predicted.shape[1:], 0) for image in pixels])
    inputs = np.asarray(normalize(whole, **statistics(config)))
    undo = dict(mean=dataset.mean, std=dataset.std)
    return segmentation_columns(inputs, predicted, size, trained.colours, truth=truth, **undo)


def _predict(
    trained: Trained, images: Sequence[np.ndarray], sizes: Int[np.ndarray, 'B 2']
) -> Int32[np.ndarray, 'B H W']:
    """Returns the classes of the pixels of images [h, w, C], resized to `sizes`, on one canvas.

    The images are predicted one by one: the logits of a large one are large.
    """
    config = trained.config
    before = np.array([image.shape[:2] for image in images], np.int32)
    canvas, new_canvas = (tuple(each.max(axis=0).tolist()) for each in (before, sizes))
    window, stride = image_size(config), window_stride(config)

    @jax.jit
    def predict(variables: Any, image: Any, size: Any, new_size: Any) -> jax.Array:
        def logits(images: jax.Array) -> jax.Array:
            return trained.model.apply(variables, images).head

        averaged = slide(logits, image[None], size[None], window, stride)
        rows = map_enlarged(
            lambda row, x: x.argmax(axis=-1), averaged, size[None], new_size[None], new_canvas
        )
        return rows[:, 0].astype(jnp.int32)

    predicted = []
    for image, size, new_size in zip(images, before, sizes, strict=True):
        normal = np.asarray(normalize(image[None], **statistics(config)))[0]
        inputs = padded(normal, canvas, 0), size, new_size
        predicted.append(np.asarray(predict(trained.variables, *inputs)))
    return np.stack(predicted)


def _read_all(
    images: Sequence[str | os.PathLike], config: ConfigDict
) -> tuple[list[np.ndarray], Int32[np.ndarray, 'B 2']]:
    """Reads images as evaluation does; returns them resized, and the sizes of the files."""
    if not images:
        raise UserError('there is no image to look at: name one or more image files.')
    fields = decoding(config.dataset)
    channels, pixels, sizes = fields.pop('channels'), [], []
    for image in images:
        record = _record(image)
        picture = decoded(decode(record, channels, lazily=True, **fields))
        sizes.append(as_array(picture).shape[:2])
        size = image_size(config)
        if config.inference != 'whole':
            size = fitted(sizes[-1], short_and_long(config))
        pixels.append(resized_image(picture, size, record))
    return pixels, np.array(sizes, np.int32)


def _truth(
    images: Sequence[str | os.PathLike],
    sizes: Int32[np.ndarray, 'B 2'],
    config: ConfigDict,
    classes: int,
) -> tuple[Integer[np.ndarray, 'B H W'], Int[np.ndarray, 'B 2']] | None:
    """Reads the masks of images of these sizes, at the upper left of a canvas, with the sizes."""
    paths = [_mask_of(Path(image)) for image in images]
    if None in paths:
        return None
    values, dataset = values_of(classes, config.dataset), config.dataset
    canvas, masks = tuple(sizes.max(axis=0).tolist()), []
    for path, image, size in zip(paths, images, sizes.tolist(), strict=True):
        mask = read_mask(_record(path)['image'], str(path))
        check_one_shape(
            str(path), mask.shape, _record(image), tuple(size), dataset.get('apply_exif', True)
        )
        masks.append(padded(values.classes(mask, str(path)), canvas, values.none))
    return np.stack(masks), sizes


def _mask_of(image: Path) -> Path | None:
    """Returns where the mask of an image lies, if it does: annotations/ in place of images/."""
    parts = image.parts
    for place in reversed([i for i, part in enumerate(parts) if part in IMAGES]):
        for folder in MASKS:
            there = Path(*parts[:place], folder, *parts[place + 1 : -1])
            files = sorted(there.iterdir()) if there.is_dir() else ()
            for file in files:
                if file.stem == image.stem and is_image(file.name):
                    return file
    return None


def _record(file: str | os.PathLike) -> Example:
    return FolderSource('', [os.fspath(file)], None, [])[0]


def _colours(path: str | os.PathLike, classes: int) -> Colours:
    """Returns the colours of the classes that the run has written, or those of PASCAL VOC."""
    path, colours = absolute(path), voc_colours(classes)
    for folder in (path, path.parent, path.parent.parent):
        file = folder / CLASS_COLOURS
        if (folder / 'config.json').exists() and file.exists():
            try:
                written = np.array(read_json(file), np.uint8)
                colours = written.reshape(classes, 3)
            except (OSError, ValueError, TypeError, OverflowError) as error:
                raise UserError(f'{file} is damaged ({reason(error)}): delete it.') from error
            break
    return tuple(tuple(map(int, colour)) for colour in colours)


def _shapes(variables: Any) -> dict[str, tuple[int, ...]]:
    flat = traverse_util.flatten_dict(variables, sep='/')
    return {name: tuple(array.shape) for name, array in flat.items()}
