"""Transforms of an image with the objects in it, for detection: large-scale jitter, crop, flip.

A row of a training batch, [H, W] being `image_size`, N `max_boxes` and M `MASK_SIDE`:

    image    [H, W, C]         at the upper left what is seen of the image
    size     int32 [2]         its height and width; what lies below and to the right is padding
    boxes    float32 [N, 4]    x0, y0, x1, y1 of what is seen of each object; zeros for padding
    classes  int32 [N]         from 0 on; -1 for padding
    masks    uint8 [N, M, M]   0 or 1: the object within its own box

A row of an evaluation batch has image and size, and original_size, int32 [2], the height and width
of the file.

Coordinates are continuous, as in detectron2: pixel i covers i to i + 1, x1 and y1 are edges, and an
image resized from w to w' pixels has its boxes multiplied by w' / w. A cell of a mask is 1 where
its centre lies inside of the outline, without bias at any size. pycocotools' mask of the whole
image, read at these centres, differs along the outline, by half a pixel of the image: in 1.5% of
the cells of random polygons of 64 pixels, in 0.4% at 256. Padding of images is what normalisation
maps to 0.
"""

from typing import Any

import numpy as np
from PIL import Image

from mae_jax.data.images.arrays import as_array, as_picture, mirrored
from mae_jax.data.images.decode import BadImage, decode
from mae_jax.data.images.outlines import Place, read_outline
from mae_jax.data.transforms.crops import Picture, Size, decoded, resize_bands, width_height
from mae_jax.data.transforms.pairs import padded, resized_image
from mae_jax.data.transforms.views import AUGMENT, CROP_AND_FLIP, Augment, augmented, generator
from mae_jax.errors import UserError

MASK_SIDE = 112
LEAST_SIDE = 1e-5
"""Pixels: a box of which less is seen is left out, as in detectron2."""


def train_instances(
    record: dict,
    *,
    seed: int,
    epoch: int,
    index: int,
    image_size: Size,
    channels: int,
    jitter: tuple[float, float],
    max_boxes: int,
    flip: bool,
    fill: tuple[float, ...],
    augment: Augment | None = None,
    repeats: int = 1,
    **reading: Any,
) -> dict[str, np.ndarray]:
    """Decodes an image and makes `repeats` random views of it and of its objects.

    Large-scale jitter (Ghiasi et al. 2021, arXiv 2012.07177): the image is resized to fit into
    `image_size` times a factor, antialiased and bilinear, the aspect kept; what is larger than
    `image_size` is cropped at a random place, what is smaller lies at the upper left; then it is
    mirrored. These are detectron2's ResizeScale, FixedSizeCrop and RandomFlip, except that the
    place of a crop is drawn for rows and columns apart. Of an object that the crop cuts, the box is
    that of what is seen of its outline; one of which nothing is seen is left out.

    Args:
      record: an `InstanceExample`.
      seed, epoch, index: what the random numbers depend on.
      image_size: (H, W) of a view in pixels.
      channels: C.
      jitter: least and largest factor.
      max_boxes: N; of more objects the largest are taken.
      flip: whether to mirror each view with a probability of 1/2.
      fill: of each band, the value of padding.
      augment: of the image alone.
      repeats: number of views, r. The first view is the same for any number.
      **reading: arguments of `decode`: apply_exif, bands, nodata.

    Returns:
      The arrays above, each [r, ...].

    Raises:
      BadImage: the file cannot be read, or has another size than its boxes are of.
      UserError: the record has no boxes, or as of `augment`.
    """
    image = _read(record, channels, **reading)
    width, height = width_height(image)
    outlines = _outlines(record, (height, width))
    views = []
    for view in range(repeats):
        rng = generator(seed, CROP_AND_FLIP, epoch, index, view)
        full = fit((height, width), image_size, rng.uniform(*jitter))
        size = tuple(map(min, full, image_size))
        top, left = (int(rng.integers(a - b + 1)) for a, b in zip(full, size, strict=True))
        is_flipped = bool(flip and rng.random() < 0.5)
        pixels = resize_part(image, full, (left, top), size)
        if is_flipped:
            pixels = mirrored(pixels)
        if augment:
            rng = generator(seed, AUGMENT, epoch, index, view)
            pixels = augmented(np.ascontiguousarray(pixels), augment, rng)
        place = _place((height, width), full, (left, top), size[1] if is_flipped else None)
        objects = _seen(record, outlines, place, size, max_boxes)
        view = {'image': padded(pixels, image_size, fill), 'size': np.array(size, np.int32)}
        views.append(view | objects)
    return {name: np.stack([view[name] for view in views]) for name in views[0]}


def eval_instances(
    record: dict, *, image_size: Size, channels: int, fill: tuple[float, ...], **reading: Any
) -> dict[str, np.ndarray]:
    """Decodes an image and resizes it to fit into `image_size`, for evaluation.

    Args:
      record, image_size, channels, fill, **reading: as of `train_instances`.

    Returns:
      A row of a batch, see above: image, size and original_size, each [1, ...].

    Raises:
      BadImage: as of `train_instances`.
    """
    image = _read(record, channels, **reading)
    original = width_height(image)[::-1]
    size = fit(original, image_size)
    return {
        'image': padded(resized_image(image, size, record), image_size, fill)[None],
        'size': np.array([size], np.int32),
        'original_size': np.array([original], np.int32),
    }


def fit(size: Size, limits: Size, factor: float = 1.0) -> Size:
    """Returns the largest (height, width) of the same proportions within `limits` times a factor.

    It is rounded to the nearest pixel, as in detectron2.
    """
    scale = factor * min(limit / side for side, limit in zip(size, limits, strict=True))
    return tuple(max(1, int(side * scale + 0.5)) for side in size)


def resize_part(
    image: Image.Image | np.ndarray, full: Size, start: tuple[int, int], size: Size
) -> np.ndarray:
    """Resizes an image, antialiased and bilinear, and returns a part of the result.

    No more is computed than the part. Its pixels are those of a crop of the whole, at most one
    step of 8 bits off.

    Args:
      image: a picture or [H, W, C].
      full: (height, width) to which it is resized.
      start: (left, top) of the part in that.
      size: (height, width) of the part.

    Returns:
      [height, width, C] of the same dtype.
    """
    method, box = Image.Resampling.BILINEAR, None
    if size != full:
        sides = width_height(image)
        steps = [side / new for side, new in zip(sides, full[::-1], strict=True)]
        ends = [a + b for a, b in zip(start, size[::-1], strict=True)]
        ends = [min(end * step, side) for end, step, side in zip(ends, steps, sides, strict=True)]
        box = (*(a * step for a, step in zip(start, steps, strict=True)), *ends)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[-1] in (1, 3):
        image = as_picture(image)
    if isinstance(image, np.ndarray):
        return resize_bands(image, size, method, box)
    return as_array(image.resize(size[::-1], method, box))


def _read(record: dict, channels: int, **reading: Any) -> Picture:
    image = decoded(decode(record, channels, lazily=True, **reading))
    size, expected = width_height(image)[::-1], record.get('size')
    exif = reading.get('apply_exif', False)
    if expected is not None and size != tuple(expected):
        turned = size == tuple(expected)[::-1]
        raise BadImage(
            f'{record["name"]} has {size[1]} x {size[0]} pixels where its boxes are of an image of '
            f'{expected[1]} x {expected[0]}: '
            + (f'try dataset.apply_exif={not exif}.' if turned else 'correct its width and height.')
        )
    return image


def _outlines(record: dict, size: Size) -> list:
    """Returns the outline of each object."""
    if 'boxes' not in record:
        raise UserError(
            f"{record['name']} has no boxes: give dataset.name='coco', or a source of your own "
            'whose examples have them.'
        )
    objects = zip(record['outlines'], record['boxes'], strict=True)
    try:
        return [read_outline(outline, box, size) for outline, box in objects]
    except ValueError as error:
        raise BadImage(f'{record["name"]}: {error}.') from error


def _place(original: Size, full: Size, start: tuple[int, int], flipped: int | None) -> Place:
    """Returns where points of an image lie in a view, mirrored if its width is given: `flipped`."""
    (height, width), (left, top) = original, start
    ax, bx = full[1] / width, -float(left)
    if flipped is not None:
        ax, bx = -ax, flipped - bx
    return Place(ax, bx, full[0] / height, -float(top))


def _seen(
    record: dict, outlines: list, place: Place, size: Size, max_boxes: int
) -> dict[str, np.ndarray]:
    """Returns boxes, classes and masks of what is seen of the largest objects, in their order."""
    height, width = size
    moved = place.boxes(np.asarray(record['boxes'], float).reshape(-1, 4))
    boxes = np.clip(moved, 0, (width, height, width, height))
    areas = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 0), axis=1)
    is_cut = (np.abs(boxes - moved) > LEAST_SIDE).any(axis=1)
    seen = {}
    for number in np.argsort(-areas, kind='stable'):
        if len(seen) == max_boxes or areas[number] == 0:
            break
        box, outline = boxes[number], outlines[number].moved(place)
        if is_cut[number]:
            box = outline.bounds(width, height)
        if box is None or (box[2:] - box[:2]).min() <= LEAST_SIDE:
            continue
        mask = outline.within(box, MASK_SIDE)
        if mask.any():
            seen[number] = box, mask
    order = sorted(seen)
    result = {
        'boxes': np.zeros((max_boxes, 4), np.float32),
        'classes': np.full(max_boxes, -1, np.int32),
        'masks': np.zeros((max_boxes, MASK_SIDE, MASK_SIDE), np.uint8),
    }
    for row, number in enumerate(order):
        result['boxes'][row], result['masks'][row] = seen[number]
        result['classes'][row] = record['classes'][number]
    return result
