"""Draws scenes of overlapping shapes, with instances in COCO's format."""

import colorsys
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ('disc', 'square', 'triangle')
CORNERS = {'disc': 32, 'square': 4, 'triangle': 3}
FINE = 4
"""Pixels are drawn as FINE x FINE points, which gives soft edges."""
HUES = 27
"""Categories beyond the shapes differ by one of so many colours."""


def draw_scenes(
    root: str | Path,
    count: int,
    size: int,
    seed: int,
    *,
    categories: Sequence[str] = SHAPES,
    split: str = 'train2017',
    most: int = 6,
    hidden: float = 0.6,
    margin: float = 0.0,
    noise: float = 0.0,
    vivid: bool = False,
    empty_every: int = 25,
    crowd_every: int = 25,
) -> Path:
    """Draws scenes as `<root>/<split>/NNNN.png`, and writes their annotations.

    A category is a shape, SHAPES[k % 3]; of more than three categories each three have a colour.
    Shapes hide others in part, and an annotation is of what can be seen: a polygon where that is
    all of a shape, uncompressed runs where others or the edge of the image cut it. The ids of
    categories have gaps: 1, 3, 5, ...

    Args:
      root: a folder.
      count: of scenes.
      size: the longer side of a scene in pixels; the shorter one is 3/4 of it or more.
      seed: of everything that is random; scenes of other seeds are other scenes.
      categories: their names.
      split: the folder of the images.
      most: shapes of a scene, at most.
      hidden: share of a shape that others hide, at most, each of them.
      margin: of the scene's sides, where no shape has its centre.
      noise: of a camera, standard deviation of every value of a pixel, of 255.
      vivid: the ground has all colours, as the shapes have, in place of nearly one grey.
      empty_every, crowd_every: every so many-th scene has no shape, or a crowd; 0: none has.

    Returns:
      The annotations' path, `<root>/annotations/instances_<split>.json`.
    """
    folder = Path(root) / split
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        empty = empty_every and number % empty_every == empty_every - 1
        crowd = crowd_every and number % crowd_every == crowd_every // 2
        shapes = 0 if empty else rng.integers(1, most + 1)
        options = dict(hidden=hidden, margin=margin, vivid=vivid)
        pixels, instances = scene(rng, size, shapes, len(categories), bool(crowd), **options)
        if noise:
            pixels = (pixels + rng.normal(0, noise, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f'{number:04d}.png')
        height, width = pixels.shape[:2]
        name = f'{number:04d}.png'
        images.append({'id': 10 + number, 'file_name': name, 'height': height, 'width': width})
        for instance in instances:
            place = {'id': 1 + len(annotations), 'image_id': 10 + number}
            annotations.append(place | instance)
    listed = [{'id': 1 + 2 * k, 'name': name} for k, name in enumerate(categories)]
    content = {'images': images, 'annotations': annotations, 'categories': listed}
    path = Path(root) / 'annotations' / f'instances_{split}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def scene(
    rng: np.random.Generator,
    size: int,
    shapes: int,
    categories: int = 3,
    crowd: bool = False,
    hidden: float = 0.6,
    margin: float = 0.0,
    vivid: bool = False,
) -> tuple[np.ndarray, list[dict]]:
    """Returns the pixels of a scene, uint8 [H, W, 3], and its annotations without ids."""
    sides = [size, int(size * rng.uniform(0.75, 1))]
    height, width = sides if rng.random() < 0.5 else sides[::-1]
    pixels = _background(rng, height, width, vivid)
    visible, seen = [], []
    if crowd:
        pixels, annotation, mask = _crowd(rng, pixels, size, categories)
        visible, seen = [mask], [annotation]
    first = len(seen)
    for _ in range(4 * shapes):
        if len(seen) - first == shapes:
            break
        category = int(rng.integers(categories))
        radius = size * rng.uniform(0.07, 0.22)
        centre = rng.uniform(margin, 1 - margin, 2) * (width, height)
        polygon = outline(SHAPES[category % 3], centre, radius, rng.uniform(0, 2 * np.pi))
        cover = coverage(polygon, height, width)
        mask = cover >= 0.5
        too_hidden = [(old & mask).sum() > hidden * old.sum() for old in visible]
        if any(too_hidden) or mask.sum() < 0.6 * radius**2:
            continue
        pixels = _paint(pixels, cover, _colour(rng, category, categories))
        visible = [old & ~mask for old in visible] + [mask]
        seen.append({'category_id': 1 + 2 * category, 'iscrowd': 0, 'polygon': polygon})
        seen[-1]['whole'] = mask.sum()
    return pixels, [_annotation(*each) for each in zip(seen, visible, strict=True)]


def outline(shape: str, centre: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Returns the corners (x, y) of a shape, [N, 2]; pixel i has coordinates from i to i + 1."""
    corners = CORNERS[shape]
    angles = angle + 2 * np.pi * np.arange(corners) / corners
    return centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def coverage(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns which share of each pixel a polygon covers, float [height, width]."""
    picture = Image.new('L', (width * FINE, height * FINE))
    points = [tuple(point) for point in polygon * FINE - 0.5]
    ImageDraw.Draw(picture).polygon(points, fill=1)
    fine = np.asarray(picture, float)
    return fine.reshape(height, FINE, width, FINE).mean(axis=(1, 3))


def runs(mask: np.ndarray) -> dict:
    """Returns COCO's uncompressed runs of a bool mask [H, W], column by column."""
    flat = np.concatenate([[False], mask.ravel(order='F')])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {'size': list(mask.shape), 'counts': counts.tolist()}


def box_of(mask: np.ndarray) -> list[float]:
    """Returns (x, y, width, height) of what a bool mask [H, W] holds."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = columns[0], rows[0]
    return [float(x), float(y), float(columns[-1] + 1 - x), float(rows[-1] + 1 - y)]


def _annotation(seen: dict, mask: np.ndarray) -> dict:
    seen = dict(seen)
    polygon, whole = seen.pop('polygon', None), seen.pop('whole', None)
    is_inside = polygon is not None and np.all((polygon >= 0) & (polygon <= mask.shape[::-1]))
    is_whole = is_inside and mask.sum() == whole
    segmentation = [polygon.round(2).ravel().tolist()] if is_whole else runs(mask)
    return seen | {'segmentation': segmentation, 'bbox': box_of(mask), 'area': float(mask.sum())}


def _background(rng: np.random.Generator, height: int, width: int, vivid: bool) -> np.ndarray:
    if vivid:
        coarse, tint = rng.integers(0, 256, (5, 5, 3), np.uint8), 0.0
    else:
        coarse, tint = rng.integers(70, 150, (5, 5), np.uint8), rng.uniform(-12, 12, 3)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    smooth = np.asarray(smooth, float).reshape(height, width, -1)
    noise = rng.normal(0, 5, (height, width, 3))
    return (smooth + tint + noise).clip(0, 255).astype(np.uint8)


def _colour(rng: np.random.Generator, category: int, categories: int) -> np.ndarray:
    hue = category // 3 / HUES if categories > 3 else rng.random()
    value = rng.uniform(0.7, 1)
    return 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.7, 1), value))


def _paint(pixels: np.ndarray, cover: np.ndarray, colour: np.ndarray) -> np.ndarray:
    cover = cover[..., None]
    return (pixels * (1 - cover) + colour * cover).round().astype(np.uint8)


def _crowd(
    rng: np.random.Generator, pixels: np.ndarray, size: int, categories: int
) -> tuple[np.ndarray, dict, np.ndarray]:
    """Paints a group of small shapes of one category, which are one annotation."""
    height, width = pixels.shape[:2]
    category = int(rng.integers(categories))
    middle = rng.uniform(0.3, 0.7, 2) * (width, height)
    mask = np.zeros((height, width), bool)
    for _ in range(8):
        centre = middle + rng.normal(0, 0.09 * size, 2)
        polygon = outline(SHAPES[category % 3], centre, 0.04 * size, rng.uniform(0, 2 * np.pi))
        cover = coverage(polygon, height, width)
        pixels = _paint(pixels, cover, _colour(rng, category, categories))
        mask |= cover >= 0.5
    return pixels, {'category_id': 1 + 2 * category, 'iscrowd': 1}, mask
