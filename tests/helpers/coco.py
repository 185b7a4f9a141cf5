"""Writes annotations in COCO's format by hand, with images of one colour."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 30
SQUARE = [[4, 4, 14, 4, 14, 14, 4, 14]]


def annotated(image: int, category: int = 1, **fields) -> dict:
    """Returns an annotation of a square of 10 pixels at (4, 4); None leaves a field out."""
    given = {'image_id': image, 'category_id': category, 'bbox': [4, 4, 10, 10], 'iscrowd': 0}
    given |= {'segmentation': SQUARE, 'area': 100.0} | fields
    return {name: value for name, value in given.items() if value is not None}


def dataset(images: int, annotations: list[dict], categories=(1, 4), first: int = 5) -> dict:
    """Returns what a file holds: images 5, 6, ..., and categories 'c1' and 'c4'."""
    return {
        'images': [
            {'id': first + i, 'file_name': f'{i}.png', 'width': WIDTH, 'height': HEIGHT}
            for i in range(images)
        ],
        'annotations': [{'id': i} | each for i, each in enumerate(annotations)],
        'categories': [{'id': number, 'name': f'c{number}'} for number in categories],
    }


def write_coco(root: Path, content: dict, file: str, folder: str) -> None:
    """Writes a file of annotations, and its images to a folder."""
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))
    for number, image in enumerate(content['images']):
        path = root / folder / image['file_name']
        path.parent.mkdir(parents=True, exist_ok=True)
        size = image['height'], image['width'], 3
        Image.fromarray(np.full(size, 10 * number % 250, np.uint8)).save(path)
