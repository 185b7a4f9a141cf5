"""COCO's average precision of detections over the held-out images, by pycocotools."""

import contextlib
import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import numpy as np
from jaxtyping import ArrayLike, Float, Float32, Int

from mae_jax.runtime.agreement import from_first
from mae_jax.tasks.detect_masks import encode, has_area, paste, to_original

KINDS = {'box': 'bbox', 'mask': 'segm'}
"""What is compared -> its name in pycocotools."""
SUMMARY = ('ap', 'ap50', 'ap75', 'ap_small', 'ap_medium', 'ap_large')
"""Names of the first of pycocotools' summary numbers: over IoUs of .5 to .95, at .5, at .75, and of
objects below 32 x 32, up to 96 x 96, and above."""
FILE = 'detections.json'

Record = dict[str, Any]
"""A detection as COCO's result files have it."""


@flax.struct.dataclass
class Outputs:
    """What was detected in the images of a batch; on the host, a `Detected`."""

    boxes: Float32[ArrayLike, 'B D 4']
    scores: Float32[ArrayLike, 'B D']
    classes: Int[ArrayLike, 'B D']
    """-1: no detection."""
    masks: Float[ArrayLike, 'B D m m']
    size: Int[ArrayLike, 'B 2']
    original_size: Int[ArrayLike, 'B 2']
    index: Int[ArrayLike, ' B']
    """Of the image in its source; -1: the row is padding."""

    def on_host(self) -> 'Detected':
        """Turns detections into records at the size of the original, in process 0 alone."""
        rows = jax.device_get(self)
        kept = np.flatnonzero(rows.index >= 0).tolist()
        records = []
        if jax.process_index() == 0:
            records = [record for row in kept for record in _records(rows, row)]
        return Detected(rows.index[kept].tolist(), records)


def _records(rows: Outputs, row: int) -> list[Record]:
    original = tuple(rows.original_size[row].tolist())
    boxes = to_original(rows.boxes[row], tuple(rows.size[row].tolist()), original)
    kept = np.flatnonzero((rows.classes[row] >= 0) & has_area(boxes))

    def record(number: int) -> Record:
        x0, y0, x1, y1 = boxes[number].tolist()
        return {
            'image_id': int(rows.index[row]),
            'category_id': int(rows.classes[row, number]),
            'bbox': [x0, y0, x1 - x0, y1 - y0],
            'score': float(rows.scores[row, number]),
            'segmentation': encode(paste(rows.masks[row, number], boxes[number], original)),
        }

    return [record(number) for number in kept.tolist()]


@dataclasses.dataclass
class Detected:
    """The detections of images; each is there once.

    Attributes:
      images: their indices in the source.
      records: detections; ids are indices of images and numbers of classes.
    """

    images: list[int]
    records: list[Record]

    def merge(self, other: 'Detected') -> 'Detected':
        """Adds those of other images."""
        return Detected(self.images + other.images, self.records + other.records)


@dataclasses.dataclass(frozen=True)
class Precision:
    """The average precision of detections.

    Attributes:
      values: 'box_ap', 'mask_ap50', ...; what no object is there for is left out.
      per_class: of every category; None but in process 0.
      records: detections with the ids of COCO; none but in process 0.
      examples: number of images.
    """

    values: dict[str, float]
    per_class: 'PrecisionPerClass | None'
    records: list[Record]
    examples: int

    def compute(self) -> dict[str, float]:
        """Returns the metrics by name."""
        return self.values

    def text(self) -> str:
        """Returns the detections as the JSON text of a result file of COCO."""
        return json.dumps(self.records)


@dataclasses.dataclass(frozen=True)
class PrecisionPerClass:
    """The average precision of every category.

    Attributes:
      count: objects of each, crowds left out.
      precision: of boxes and of masks; NaN where there is no object.
    """

    count: Int[np.ndarray, ' K']
    precision: Float[np.ndarray, '2 K']

    title = 'AP'
    columns = ('objects', *(f'{kind}_ap' for kind in KINDS))

    def compute(self) -> Float[np.ndarray, '2 K']:
        """Returns the precision of boxes, and that of masks."""
        return self.precision


def precision_of(detected: Detected, source: Any) -> Precision:
    """Compares detections with the truth of a source; process 0 does, and the others wait.

    Args:
      detected: in images of the source; only these count.
      source: has `ground_truth`, `image_ids` and `category_ids`, as `CocoSource` does.
    """
    result = {}

    def compute() -> dict[str, float]:
        images = [_plain(source.image_ids[index]) for index in detected.images]
        records = [_in_words_of(source, record) for record in detected.records]
        truth = coco_of(source.ground_truth())
        runs = {kind: run_cocoeval(truth, records, images, name) for kind, name in KINDS.items()}
        objects = _objects(truth, images, list(map(_plain, source.category_ids)))
        precision = np.stack([_per_class(run) for run in runs.values()])
        result.update(records=records, per_class=PrecisionPerClass(objects, precision))
        return {
            f'{kind}_{name}': float(value)
            for kind, run in runs.items()
            for name, value in zip(SUMMARY, run.stats, strict=False)
            if value >= 0  # -1: there is no object
        }

    values = from_first(compute)
    per_class, records = result.get('per_class'), result.get('records', [])
    return Precision(values, per_class, records, len(detected.images))


def _in_words_of(source: Any, record: Record) -> Record:
    """Returns a record with the ids that the annotations have for its image and category."""
    image, category = record['image_id'], record['category_id']
    ids = source.image_ids[image], source.category_ids[category]
    return record | dict(zip(('image_id', 'category_id'), map(_plain, ids), strict=True))


def _plain(number: Any) -> Any:
    """Returns a NumPy scalar as a number that JSON has."""
    return number.item() if isinstance(number, np.generic) else number


def coco_of(dataset: dict[str, Any]) -> Any:
    """Returns pycocotools' API of annotations in COCO's format."""
    from pycocotools.coco import COCO

    api = COCO()
    api.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        api.createIndex()
    return api


def run_cocoeval(truth: Any, records: Sequence[Record], images: Sequence[int], kind: str) -> Any:
    """Runs pycocotools' evaluation, and returns its `COCOeval` with `stats` and `eval`.

    Args:
      truth: `coco_of` the annotations.
      records: detections.
      images: ids of those that count, the ones without annotations or detections too.
      kind: 'bbox' or 'segm'.
    """
    from pycocotools.cocoeval import COCOeval

    if kind == 'segm':  # by the area of the mask, not of the box, it is small or large
        records = [{n: x for n, x in record.items() if n != 'bbox'} for record in records]
    with contextlib.redirect_stdout(io.StringIO()):
        # pycocotools changes what it is given, and refuses to load no detections.
        found = truth.loadRes([dict(record) for record in records]) if records else None
        run = COCOeval(truth, found or coco_of(truth.dataset | {'annotations': []}), kind)
        run.params.imgIds = sorted(images)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


def _per_class(run: Any) -> Float[np.ndarray, ' K']:
    precision = run.eval['precision'][:, :, :, 0, -1]  # any size, all detections
    precision = np.where(precision < 0, np.nan, precision)
    known = ~np.isnan(precision).all(axis=(0, 1))
    means = np.full(precision.shape[2], np.nan)
    means[known] = np.nanmean(precision[:, :, known], axis=(0, 1))
    return means


def _objects(truth: Any, images: Sequence[int], categories: Sequence[int]) -> Int[np.ndarray, ' K']:
    """Counts the objects of each category."""
    annotations = truth.loadAnns(truth.getAnnIds(imgIds=list(images), iscrowd=False))
    ids = [annotation['category_id'] for annotation in annotations]
    return np.array([ids.count(category) for category in categories])
