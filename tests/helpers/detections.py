"""Annotations and detections made by hand, with the sources and outputs that tasks have."""

import dataclasses
from typing import Any

import numpy as np

from mae_jax.tasks.detect_metrics import Outputs


@dataclasses.dataclass
class Truth:
    """A source of annotations: images of ids 7, 3, 12, ..., categories of ids 2 and 5."""

    sizes: list[tuple[int, int]]
    annotations: list[dict[str, Any]]
    category_ids = (2, 5)
    class_names = ('disc', 'square')
    num_classes = 2

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def image_ids(self) -> np.ndarray:
        return np.array([7, 3, 12, 9, 40, 41, 42, 43])[: len(self)]

    def ground_truth(self) -> dict[str, Any]:
        images = [
            {'id': int(identity), 'height': h, 'width': w, 'file_name': f'{identity}.png'}
            for identity, (h, w) in zip(self.image_ids, self.sizes, strict=True)
        ]
        categories = [
            {'id': identity, 'name': name}
            for identity, name in zip(self.category_ids, self.class_names, strict=True)
        ]
        annotations = [
            {'id': number + 1, 'iscrowd': 0} | each for number, each in enumerate(self.annotations)
        ]
        return {'images': images, 'annotations': annotations, 'categories': categories}


def annotation(image: int, category: int, x: float, y: float, w: float, h: float, **fields) -> dict:
    """A rectangle."""
    outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return {
        'image_id': image,
        'category_id': category,
        'bbox': [x, y, w, h],
        'area': w * h,
        'segmentation': outline,
    } | fields


def example() -> Truth:
    """Four images: the third has no annotation, the fourth a crowd beside an object."""
    crowd = {'counts': [0, 60 * 40], 'size': [60, 40]}
    return Truth(
        [(50, 80), (100, 60), (64, 64), (60, 40)],
        [
            annotation(7, 2, 10, 10, 30, 20),
            annotation(7, 5, 45, 5, 30, 40),
            annotation(3, 2, 5, 50, 50, 45),
            annotation(3, 2, 0, 0, 12, 12),
            annotation(9, 5, 3, 4, 20, 30),
            annotation(9, 2, 0, 0, 40, 60, iscrowd=1, segmentation=crowd, area=2400),
        ],
    )


def outputs_of(
    rows: list[tuple[int, list[tuple[int, float, tuple[float, ...]]]]],
    truth: Truth,
    scale: float = 2.0,
    most: int = 6,
) -> Outputs:
    """What a detector returns for a batch.

    Args:
      rows: index of an image, or -1 for padding, and (class, score, box of the original) of each.
      scale: of the images that were seen to the originals.
    """
    count = len(rows)
    boxes, masks = np.zeros((count, most, 4)), np.zeros((count, most, 28, 28))
    scores, classes = np.zeros((count, most)), np.full((count, most), -1)
    sizes = np.array([truth.sizes[max(index, 0)] for index, _ in rows])
    for row, (_, found) in enumerate(rows):
        for number, (kind, score, box) in enumerate(found):
            boxes[row, number] = scale * np.array(box)
            scores[row, number], classes[row, number] = score, kind
            masks[row, number] = 1.0
    return Outputs(
        boxes.astype(np.float32),
        scores.astype(np.float32),
        classes.astype(np.int32),
        masks.astype(np.float32),
        size=np.rint(scale * sizes).astype(np.int32),
        original_size=sizes.astype(np.int32),
        index=np.array([index for index, _ in rows], np.int32),
    )
