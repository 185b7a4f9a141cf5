"""Groups images of different sizes by the canvas on which they are evaluated."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from mae_jax.data.images.jpeg import Size

STARTUP = 4
"""What another shape of batches costs, in batches of that shape: the program is compiled for it."""


class Resized(NamedTuple):
    """An image of evaluation.

    Attributes:
      index: of the example.
      original, size: (height, width) in pixels, before and after the image is resized.
    """

    index: int
    original: Size
    size: Size


class Group(NamedTuple):
    """Images of one canvas.

    Attributes:
      images: in the order of evaluation.
      canvas, mask_canvas: (height, width) of the arrays that hold an image and its mask.
    """

    images: list[Resized]
    canvas: Size
    mask_canvas: Size


def group(
    images: Sequence[Resized], canvas: Callable[[Size], Size], batch_size: int
) -> list[Group]:
    """Groups images by canvas, and joins groups where that is cheaper.

    A group costs the pixels of its batches, of which the last may be almost empty, and `STARTUP`.
    The result depends on the arguments alone, so that all processes have the same.

    Args:
      images: in the order of evaluation, which is kept within a group.
      canvas: (height, width) of a resized image -> that of its canvas.
      batch_size: of a global batch.

    Returns:
      The groups, the largest first.
    """
    groups = {}
    for image in images:
        # Both sides: of a strip a pixel high, the ratio of the heights is another.
        sides = zip(image.original, image.size, strict=True)
        enlarged = tuple(math.ceil(math.log2(max(a / b, 1))) for a, b in sides)
        groups.setdefault((canvas(image.size), enlarged), []).append(image)
    groups = [
        Group(members, place, _hull(image.original for image in members))
        for (place, _), members in groups.items()
    ]
    while joined := _cheapest(groups, batch_size):
        first, second, both = joined
        groups = [each for i, each in enumerate(groups) if i not in (first, second)] + [both]
    order = {image.index: number for number, image in enumerate(images)}
    groups = [g._replace(images=sorted(g.images, key=lambda i: order[i.index])) for g in groups]
    return sorted(groups, key=lambda g: (-len(g.images), g.canvas, g.mask_canvas))


def _cheapest(groups: list[Group], batch_size: int) -> tuple[int, int, Group] | None:
    """Returns the two groups whose union saves the most, by their numbers, and it."""
    best, choice = 0, None
    for i, j in itertools.combinations(range(len(groups)), 2):
        one, other = groups[i], groups[j]
        both = Group(
            one.images + other.images,
            _hull((one.canvas, other.canvas)),
            _hull((one.mask_canvas, other.mask_canvas)),
        )
        saved = sum(_cost(each, batch_size) for each in (one, other)) - _cost(both, batch_size)
        if saved > best:
            best, choice = saved, (i, j, both)
    return choice


def _cost(group: Group, batch_size: int) -> int:
    batches = -(-len(group.images) // batch_size) + STARTUP
    return batches * (math.prod(group.canvas) + math.prod(group.mask_canvas))


def _hull(sizes: Iterable[Size]) -> Size:
    """Returns the smallest size that holds all of these."""
    return tuple(map(max, zip(*sizes, strict=True)))
