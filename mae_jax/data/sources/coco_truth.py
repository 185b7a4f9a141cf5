"""What pycocotools compares detections with, from annotations in COCO's format."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

from mae_jax.data.sources.coco_json import LEAST_CORNERS, entries_of, parse


def ground_truth(path: str, image_ids: Sequence[int]) -> dict[str, Any]:
    """Reads what pycocotools compares detections with, for some of the images of a file.

    Objects are numbered from 1 on: for pycocotools, 0 is no object. What exports lack is added:
    `iscrowd`, `area` and `bbox`; of an object without an outline, that of its box.

    Returns:
      `{'images', 'annotations', 'categories'}`, for `pycocotools.coco.COCO().dataset`.

    Raises:
      UserError: as of `read_annotations`.
    """
    content = parse(path)
    images = {entry['id']: entry for entry in entries_of(path, content, 'images')}
    wanted = {int(number) for number in image_ids}
    objects = [entry for entry in content.get('annotations', ()) if entry['image_id'] in wanted]
    return {
        'images': [images[number] for number in images if number in wanted],
        'annotations': [
            _completed(entry, images[entry['image_id']]) | {'id': number}
            for number, entry in enumerate(objects, 1)
        ],
        'categories': entries_of(path, content, 'categories'),
    }


def _completed(entry: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    """Returns an object with all that pycocotools needs."""
    from pycocotools import mask as masks

    outline, box = entry.get('segmentation'), entry.get('bbox')
    size = [image['height'], image['width']]
    if isinstance(outline, list) and outline and isinstance(outline[0], Real):
        outline = [outline]
    if not outline:
        x, y, width, height = box
        outline = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    elif isinstance(outline, list):
        outline = [ring for ring in outline if len(ring) >= 2 * LEAST_CORNERS]
        outline = outline or {'size': size, 'counts': [size[0] * size[1]]}
    entry = entry | {'segmentation': outline, 'iscrowd': int(bool(entry.get('iscrowd', 0)))}
    if box is None or entry.get('area') is None:
        packed = isinstance(outline, dict) and isinstance(outline['counts'], str)
        runs = outline if packed else masks.frPyObjects(outline, *size)
        runs = masks.merge(runs) if isinstance(runs, list) else runs
        given = entry.get('area')
        entry['area'] = float(masks.area(runs)) if given is None else given
        entry['bbox'] = masks.toBbox(runs).tolist() if box is None else box
    return entry
