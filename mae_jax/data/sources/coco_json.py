"""Reads annotations in COCO's format into arrays."""

import dataclasses
import json
import math
from array import array
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int

from mae_jax.data.images.limits import MAX_IMAGE_PIXELS
from mae_jax.data.images.outlines import unpack_runs
from mae_jax.data.sources.outlines import Outlines
from mae_jax.errors import UserError
from mae_jax.files.limits import read_bytes, reason

MAX_ANNOTATION_BYTES = 8 << 30
"""Maximum size of a file of annotations; that of COCO's training images has 0.5 GB."""
LEAST_CORNERS = 3


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What a file holds, in the order of images' and of categories' ids.

    Attributes:
      names: the file of each image.
      image_ids: of the images.
      sizes: their (height, width).
      category_ids, category_names: of the categories.
      numbers: the image of each object.
      classes: the category of each object, counted from 0.
      boxes: (x0, y0, x1, y1), not cut by the edge of the image; of an object without a box, those
        of its outline.
      crowds: whether it stands for many.
      outlines: what each has.
      outlined: whether an outline was given, such as one of too few corners.
      unlisted: how many objects were left out because their image is not listed.
    """

    names: list[str]
    image_ids: Int[np.ndarray, ' I']
    sizes: Int[np.ndarray, 'I 2']
    category_ids: Int[np.ndarray, ' K']
    category_names: list[str]
    numbers: Int[np.ndarray, ' N']
    classes: Int[np.ndarray, ' N']
    boxes: Float64[np.ndarray, 'N 4']
    crowds: Bool[np.ndarray, ' N']
    outlines: Outlines
    outlined: Bool[np.ndarray, ' N']
    unlisted: int


def read_annotations(path: str) -> Annotations:
    """Reads a file of annotations, one object after another.

    Raises:
      UserError: the file cannot be read or is not as COCO's, two images or categories have one id,
        an object is of a category that is not listed, or its mask of another size than its image.
    """
    objects = _Objects(path)
    content = parse(path, objects.collect)
    images, categories = (entries_of(path, content, field) for field in ('images', 'categories'))
    if not images or not categories:
        raise UserError(f'{path} lists no {"category" if images else "image"}: there is no data.')
    return objects.arrange(images, categories)


def parse(path: str, hook: Any = None) -> dict[str, Any]:
    """Returns the content of a file, of which `hook` may replace every object of JSON."""
    try:
        content = json.loads(read_bytes(path, MAX_ANNOTATION_BYTES), object_hook=hook)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path} cannot be read as annotations: {reason(error)}.') from error
    if not isinstance(content, dict) or not isinstance(content.get('images'), list):
        raise UserError(
            f"{path} is no file of COCO's annotations: it needs the lists images, annotations and "
            'categories.'
        )
    return content


def entries_of(path: str, content: dict, field: str) -> list[dict[str, Any]]:
    """Returns the images or categories in the order of their ids."""
    needed = dict(images=('file_name', 'height', 'width'), categories=('name',))[field]
    entries = content.get(field)
    entries = entries if isinstance(entries, list) else []
    for entry in entries:
        known = entry if isinstance(entry, dict) else {}
        kinds = {'id': int, 'height': int, 'width': int}
        for name in ('id', *needed):
            if type(known.get(name)) is not kinds.get(name, str):
                kind = 'a whole number' if name in kinds else 'a text'
                raise UserError(f'{path}: {name} of {_short(entry)} in {field} must be {kind}.')
        if field == 'images' and not 0 < known['height'] * known['width'] <= MAX_IMAGE_PIXELS:
            raise UserError(f'{path}: {_short(entry)} must have 1 to {MAX_IMAGE_PIXELS:,} pixels.')
    entries = sorted(entries, key=lambda entry: entry['id'])
    for entry, after in zip(entries, entries[1:], strict=False):
        if entry['id'] == after['id']:
            raise UserError(f'{path} has two {field} with the id {entry["id"]}: give each its own.')
    return entries


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f'{text[:77]}...'


class _Objects:
    """Collects the objects of a file in arrays while it is parsed."""

    def __init__(self, path: str):
        self._path = path
        self._images, self._categories, self._ids = array('q'), array('q'), array('q')
        self._boxes, self._crowds, self._outlined = array('d'), array('b'), array('b')
        self._points, self._counts = array('f'), array('q')
        self._rings, self._sizes = array('q', [0]), array('q')
        self._polygons, self._runs = array('q', [0]), array('q', [0])

    def collect(self, entry: dict[str, Any]) -> dict[str, Any] | None:
        """Takes what the parser has read, if it is an object, and returns it otherwise."""
        if 'image_id' not in entry:
            return entry
        try:
            self._add(entry)
        except (TypeError, ValueError, OverflowError, KeyError) as error:
            name, text = f'{self._path}: annotation {entry.get("id", "")}'.rstrip(), str(error)
            if isinstance(error, KeyError):
                text = f'it has no {error.args[0]}'
            raise UserError(f'{name} cannot be read: {text}.') from error
        return None

    def _add(self, entry: dict[str, Any]) -> None:
        outline, box = entry.get('segmentation'), entry.get('bbox')
        self._images.append(entry['image_id'])
        self._categories.append(entry['category_id'])
        self._ids.append(entry['id'] if type(entry.get('id')) is int else -1)
        self._crowds.append(bool(entry.get('iscrowd', 0)))
        self._outlined.append(bool(outline))
        size = (0, 0)
        if isinstance(outline, dict):
            size = self._add_runs(outline)
        elif outline:
            self._add_polygons(outline)
        self._sizes.extend(size)
        self._polygons.append(len(self._rings) - 1)
        self._runs.append(len(self._counts))
        if box is None and not outline:
            raise ValueError('it has neither bbox nor segmentation')
        box = [math.nan] * 4 if box is None else box
        if len(box) != 4 or not (math.isfinite(sum(box)) or entry.get('bbox') is None):
            raise ValueError(f'bbox={box} must be x, y, width and height')
        self._boxes.extend(box)

    def _add_runs(self, outline: dict[str, Any]) -> list[int]:
        counts, (height, width) = outline['counts'], outline['size']
        if isinstance(counts, str):
            counts = unpack_runs(counts.encode())
        elif not all(type(count) is int for count in counts):
            raise ValueError('the counts of a mask must be whole numbers')
        pixels = height * width
        if min(counts, default=-1) < 0 or not sum(map(int, counts)) == pixels <= MAX_IMAGE_PIXELS:
            raise ValueError(f'the counts of its mask are not those of {height} x {width} pixels')
        self._counts.extend(map(int, counts))
        return [height, width]

    def _add_polygons(self, outline: Sequence) -> None:
        for ring in [outline] if isinstance(outline[0], Real) else outline:
            if len(ring) % 2 or not math.isfinite(sum(ring)):
                raise ValueError('x and y must alternate in a polygon, and be numbers')
            if len(ring) >= 2 * LEAST_CORNERS:
                self._points.extend(ring)
                self._rings.append(len(self._points) // 2)

    def arrange(self, images: list[dict], categories: list[dict]) -> Annotations:
        """Returns the collected objects of the listed images, image by image."""
        image_ids, category_ids = (
            np.array([entry['id'] for entry in entries], np.int64)
            for entries in (images, categories)
        )
        sizes = np.array([(entry['height'], entry['width']) for entry in images], np.int64)
        numbers, is_listed = _places(image_ids, _view(self._images, np.int64))
        rows = np.flatnonzero(is_listed)
        rows = rows[np.argsort(numbers[rows], kind='stable')]
        classes, has_class = _places(category_ids, _view(self._categories, np.int64)[rows])
        if not has_class.all():
            row = rows[np.argmin(has_class)]
            number, category = self._ids[row], self._categories[row]
            raise UserError(
                f'{self._path}: annotation {number} is of category {category}, which is none of '
                f'the {len(categories)} that are listed: add it, or remove its annotations.'
            )
        outlines = self._outlines()
        boxes = self._corners(outlines)[rows]
        outlines, numbers = outlines.take(rows), numbers[rows]
        self._check_sizes(outlines, sizes[numbers], rows)
        return Annotations(
            [entry['file_name'] for entry in images],
            image_ids,
            sizes,
            category_ids,
            [entry['name'] for entry in categories],
            numbers,
            classes,
            boxes,
            _view(self._crowds, np.int8)[rows] != 0,
            outlines,
            _view(self._outlined, np.int8)[rows] != 0,
            unlisted=int((~is_listed).sum()),
        )

    def _outlines(self) -> Outlines:
        ends = (_view(each, np.int64) for each in (self._polygons, self._runs))
        polygons, runs = (np.stack([each[:-1], each[1:]], axis=1) for each in ends)
        points = _view(self._points, np.float32).reshape(-1, 2)
        if not np.isfinite(points).all():
            raise UserError(f'{self._path} has a polygon with a number beyond 1e38: correct it.')
        return Outlines(
            points=points,
            rings=_view(self._rings, np.int64),
            polygons=polygons,
            # Copies of half the size: no run has more pixels than an image.
            counts=_view(self._counts, np.int64).astype(np.int32),
            runs=runs,
            sizes=_view(self._sizes, np.int64).astype(np.int32).reshape(-1, 2),
        )

    def _corners(self, outlines: Outlines) -> Float64[np.ndarray, 'N 4']:
        """Returns the boxes as (x0, y0, x1, y1); that of its outline where an object has none."""
        boxes = _view(self._boxes, np.float64).reshape(-1, 4).copy()
        lacking = np.flatnonzero(np.isnan(boxes[:, 0]))
        boxes[:, 2:] += boxes[:, :2]
        for number in lacking:
            boxes[number] = outlines.bounds(number)
        return boxes

    def _check_sizes(self, outlines: Outlines, sizes: np.ndarray, rows: np.ndarray) -> None:
        has_runs = outlines.runs[:, 1] > outlines.runs[:, 0]
        others = has_runs & (outlines.sizes != sizes).any(axis=1)
        if others.any():
            number = np.argmax(others)
            mask, image = (f'{w} x {h}' for h, w in (outlines.sizes[number], sizes[number]))
            raise UserError(
                f'{self._path}: the mask of annotation {self._ids[rows[number]]} has {mask} pixels '
                f'where its image has {image}: make both of one size.'
            )


def _view(values: array, dtype: type) -> np.ndarray:
    """Returns an array of the same memory."""
    return np.frombuffer(values, dtype) if len(values) else np.zeros(0, dtype)


def _places(ids: Int[np.ndarray, ' n'], wanted: Int[np.ndarray, ' m']) -> tuple[np.ndarray, ...]:
    """Returns where each wanted id is in ascending ids, and whether it is there."""
    places = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return places, ids[places] == wanted
