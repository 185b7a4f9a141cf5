"""The objects in image files, by a trained detector."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, Int
from ml_collections import ConfigDict

from mae_jax.config.data import decoding
from mae_jax.config.detection_data import padding
from mae_jax.config.model import image_size, statistics
from mae_jax.data.sources.classes import voc_colours
from mae_jax.data.sources.folder import FolderSource
from mae_jax.data.transforms.boxes import eval_instances
from mae_jax.errors import UserError
from mae_jax.interop.detectors import detector_of, is_detector
from mae_jax.interop.read import read_model
from mae_jax.models.detection.detector import Detections, Detector
from mae_jax.tasks.detect_masks import instances_of
from mae_jax.tasks.preprocess import normalize
from mae_jax.visualization.detection import Instances, detection_columns
from mae_jax.visualization.drawing import Columns, to_pixels


class Detected(NamedTuple):
    """The objects in an image, the most certain first."""

    boxes: Float32[np.ndarray, 'D 4']
    """x0, y0, x1, y1 in pixels of the file; x1 and y1 are edges that do not belong to the box."""
    scores: Float32[np.ndarray, ' D']
    """From 0 to 1."""
    classes: Int[np.ndarray, ' D']
    """Numbers of the classes, in the order of the ids of the training data's categories."""
    masks: Bool[np.ndarray, 'D H W']
    """True for the pixels of the object, at the size of the file."""
    names: list[str]
    """Of the classes; their numbers where no names are known."""


class TrainedDetector(NamedTuple):
    """A trained detector."""

    model: Detector
    params: Any
    config: ConfigDict
    names: tuple[str, ...]
    """Of the classes; their numbers where no names are known."""


def load_detector(path: str | os.PathLike) -> TrainedDetector:
    """Loads a detector; it computes in float32.

    Args:
      path: a work directory, one of its checkpoints, a file that `mae-jax convert` wrote, or a
        `.pkl` file of detectron2.

    Raises:
      UserError: there is no such model, it is damaged, or it does not detect.
    """
    trained = read_model(path)
    if not is_detector(trained):
        raise UserError(
            f'{path} does not detect objects: give a run of configs/detect.py, or another --show.'
        )
    try:
        model = detector_of(trained)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    encoder = model.encoder.clone(dtype=jnp.float32, residual_dtype=jnp.float32)
    params = jax.tree.map(jnp.asarray, trained.params)
    names = trained.class_names or tuple(map(str, range(model.num_classes)))
    return TrainedDetector(model.clone(encoder=encoder), params, trained.config, names)


def detect(
    path: str | os.PathLike,
    images: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    score: float = 0.05,
) -> list[Detected]:
    """Detects the objects in image files, a `Detected` for each.

        detected = mae_jax.detect('runs/detect', ['a.jpg', 'b.jpg'])

    Images are resized as for evaluation, boxes and masks back to the size of the file.

    Args:
      path: as for `load_detector`.
      images: an image file, or several.
      score: the least score of what is returned; the model itself leaves out what is below its
        `model.score_threshold`.

    Raises:
      UserError: the model cannot be loaded, or an image cannot be read.
    """
    images = [images] if isinstance(images, str | os.PathLike) else images
    trained, results = load_detector(path), []
    run = _runner(trained)
    for row in map(_reader(trained.config), images):
        each = run(row)
        kept = np.flatnonzero(each.scores >= score)
        fields = (each.boxes, each.scores, each.classes, each.masks)
        boxes, scores, classes, masks = (field[kept] for field in fields)
        names = [trained.names[kind] for kind in classes]
        results.append(Detected(boxes, scores, classes, masks, names))
    return results


def detected_columns(path: str | os.PathLike, images: Sequence[str | os.PathLike]) -> Columns:
    """Draws images, resized as for evaluation, and what is detected in them.

    Args:
      path: of the model, as for `load_detector`.
      images: image files.

    Raises:
      UserError: the model cannot be loaded, or an image cannot be read.
    """
    if not images:
        raise UserError('there is no image to look at: name one or more image files.')
    trained = load_detector(path)
    run, dataset = _runner(trained), trained.config.dataset
    pictures, found = [], []
    for row in map(_reader(trained.config), images):
        height, width = row['size'][0].tolist()
        normal = np.asarray(normalize(row['image'], **statistics(trained.config)))
        pixels = to_pixels(normal, dataset.mean, dataset.std)[0]
        pictures.append(pixels[:height, :width])
        found.append(run(row | {'original_size': row['size']}))
    return detection_columns(pictures, found, trained.names, voc_colours(len(trained.names)))


def _reader(config: ConfigDict) -> Callable[[str | os.PathLike], dict[str, np.ndarray]]:
    """Returns a function that reads an image file as a row of an evaluation batch."""
    fields = decoding(config.dataset) | dict(image_size=image_size(config), fill=padding(config))

    def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
        record = FolderSource('', [os.fspath(path)], None, [])[0]
        return eval_instances(record, **fields)

    return read


def _runner(trained: TrainedDetector) -> Callable[[dict[str, np.ndarray]], Instances]:
    """Returns a function that detects in a row of an evaluation batch, at the original's size."""

    @jax.jit
    def run(params: Any, images: jax.Array, size: jax.Array) -> Detections:
        return trained.model.apply({'params': params}, images, size, method='detect')

    def detect_row(row: dict[str, np.ndarray]) -> Instances:
        normal = np.array(normalize(row['image'], **statistics(trained.config)))
        (height, width), original = row['size'][0].tolist(), row['original_size'][0].tolist()
        normal[:, height:], normal[:, :, width:] = 0, 0
        found = Detections(*(np.asarray(x)[0] for x in run(trained.params, normal, row['size'])))
        return instances_of(found, (height, width), tuple(original))

    return detect_row
