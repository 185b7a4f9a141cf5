"""Outlines of objects, polygons or pixels: moved with the image, cut by its edge, drawn in boxes.

Coordinates are continuous: pixel i covers i to i + 1, and a mask drawn on a grid has the cells
whose centres lie inside. Boxes are (x0, y0, x1, y1), whose right and lower edges lie outside.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

Box = Float[np.ndarray, '4']
Ring = Float[np.ndarray, 'n 2']


class Place(NamedTuple):
    """Where the points of an image lie in a view of it: x is mapped to `ax * x + bx`."""

    ax: float
    bx: float
    ay: float
    by: float

    def points(self, points: Float[np.ndarray, '*n 2']) -> Float[np.ndarray, '*n 2']:
        """Maps points (x, y)."""
        return points * (self.ax, self.ay) + (self.bx, self.by)

    def boxes(self, boxes: Float[np.ndarray, 'n 4']) -> Float[np.ndarray, 'n 4']:
        """Maps boxes, whose corners keep their order where the view is mirrored."""
        moved = self.points(boxes.reshape(-1, 2, 2))
        return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1)

    def of(self, points: Float[np.ndarray, '*n'], axis: int) -> Float[np.ndarray, '*n']:
        """Maps numbers of a view back to x (axis 0) or y (1) of the image."""
        a, b = self[2 * axis : 2 * axis + 2]
        return (points - b) / a


class Polygons(NamedTuple):
    """An object as rings of corners (x, y), each filled by the even-odd rule; their union."""

    rings: Sequence[Ring]

    def moved(self, place: Place) -> 'Polygons':
        """Returns the outline in a view of its image."""
        return Polygons([place.points(ring) for ring in self.rings])

    def bounds(self, width: int, height: int) -> Box | None:
        """Returns the box of what lies in (0, 0, width, height); None where nothing does.

        The extreme points of what is seen lie on edges that are cut at the border, or are corners
        of the view that lie inside.
        """
        border = np.array([[0, 0], [width, 0], [0, height], [width, height]], float)
        points = [np.zeros((0, 2))]
        for ring in self.rings:
            points += [_cut_edges(ring, (width, height)), border[_contains(ring, border)]]
        points = np.concatenate(points)
        return np.concatenate([points.min(axis=0), points.max(axis=0)]) if len(points) else None

    def within(self, box: Box, side: int) -> UInt8[np.ndarray, 'side side']:
        """Draws the outline on a grid of `side` x `side` cells that fill a box, 0 or 1."""
        drawn = np.zeros((side, side), bool)
        for ring in self.rings:
            drawn |= _filled((ring - box[:2]) * (side / (box[2:] - box[:2])), side)
        return drawn.astype(np.uint8)


class Pixels(NamedTuple):
    """An object as a mask of pixels, and where these lie in the view."""

    mask: UInt8[np.ndarray, 'H W'] | Bool[np.ndarray, 'H W']
    place: Place = Place(1.0, 0.0, 1.0, 0.0)

    def moved(self, place: Place) -> 'Pixels':
        """Returns the outline in a view of its image."""
        return Pixels(self.mask, place)

    def bounds(self, width: int, height: int) -> Box | None:
        """Returns the box of what lies in (0, 0, width, height); None where nothing does."""
        (x0, x1), (y0, y1) = (
            self._seen(axis, length) for axis, length in enumerate((width, height))
        )
        seen = self.mask[y0:y1, x0:x1]
        columns, rows = (np.flatnonzero(seen.any(axis=axis)) for axis in (0, 1))
        if not len(columns):
            return None
        corners = [[x0 + columns[0], y0 + rows[0]], [x0 + columns[-1] + 1, y0 + rows[-1] + 1]]
        box = self.place.boxes(np.array(corners, float).reshape(1, 4))[0]
        return np.clip(box, 0, (width, height, width, height))

    def within(self, box: Box, side: int) -> UInt8[np.ndarray, 'side side']:
        """Draws the outline on a grid of `side` x `side` cells that fill a box, 0 or 1."""
        steps = (np.arange(side) + 0.5) / side
        columns, rows = (
            self._pixels(box[axis] + steps * (box[axis + 2] - box[axis]), axis) for axis in (0, 1)
        )
        return (self.mask[rows[:, None], columns] != 0).astype(np.uint8)

    def _pixels(self, points: Float[np.ndarray, ' n'], axis: int) -> Int[np.ndarray, ' n']:
        """Returns the column (axis 0) or row (1) of the mask that holds each coordinate."""
        pixels = np.floor(self.place.of(points, axis)).astype(int)
        return np.clip(pixels, 0, self.mask.shape[1 - axis] - 1)

    def _seen(self, axis: int, length: int) -> tuple[int, int]:
        """Returns the first column or row of the mask that can be seen, and the end of them."""
        first, last = sorted(self.place.of(np.array([0.0, length]), axis))
        return max(int(np.floor(first + 1e-6)), 0), max(int(np.ceil(last - 1e-6)), 0)


Outline = Polygons | Pixels


def read_outline(given: Any, box: Box, size: tuple[int, int]) -> Outline:
    """Returns an outline from what a source has for it.

    Args:
      given: corners (x, y) of one or more polygons, [n, 2] each; a mask [H, W]; COCO's runs,
        {'size': (H, W), 'counts': int [n]}; or None for the whole box.
      box: of the object.
      size: (height, width) of the image.

    Raises:
      ValueError: a mask has another size.
    """
    if given is None:
        x0, y0, x1, y1 = box
        return Polygons([np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)])
    if isinstance(given, Mapping):
        given = decode_runs(given['counts'], given['size'])
    if not isinstance(given, np.ndarray):
        return Polygons([np.asarray(ring, float) for ring in given])
    if given.shape != tuple(size):
        raise ValueError(f'a mask of {given.shape} for an image of {tuple(size)}')
    return Pixels(given)


def decode_runs(counts: Int[np.ndarray, ' n'], size: tuple[int, int]) -> UInt8[np.ndarray, 'H W']:
    """Returns the mask of COCO's runs, which alternate between 0 and 1, column by column."""
    height, width = size
    values = (np.arange(len(counts)) % 2).astype(np.uint8)
    return np.repeat(values, counts).reshape(width, height).T


def unpack_runs(text: bytes) -> Int[np.ndarray, ' n']:
    """Returns the runs of COCO's compressed text.

    Five bits a character, the lowest first, of the run less the one two before it; 48 is added, the
    sixth bit says that the number goes on, and the fifth of its last character is its sign.
    """
    letters = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(letters & 32 == 0)
    if not len(letters) or not len(last) or last[-1] != len(letters) - 1:
        raise ValueError('compressed runs that end within a number')
    starts = np.concatenate([[0], last[:-1] + 1])
    lengths = last - starts + 1
    if letters.min() < 0 or letters.max() > 63 or lengths.max() > 7:
        raise ValueError('compressed runs of other characters')
    shifts = 5 * (np.arange(len(letters)) - np.repeat(starts, lengths))
    counts = np.add.reduceat((letters & 31) << shifts, starts)
    counts -= (letters[last] >> 4 & 1) << 5 * lengths
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def _edges(ring: Ring) -> tuple[Ring, Ring]:
    """Returns the starts and ends of the edges of a ring."""
    return ring, np.roll(ring, -1, axis=0)


def _filled(ring: Ring, side: int) -> Bool[np.ndarray, 'side side']:
    """Returns the cells of a grid whose centres a ring contains; a cell has sides of 1."""
    (u0, v0), (u1, v1) = (points.T for points in _edges(ring))
    centres = np.arange(side)[:, None] + 0.5
    rows, edges = np.nonzero((v0 <= centres) != (v1 <= centres))
    u0, v0, u1, v1 = (each[edges] for each in (u0, v0, u1, v1))
    crossings = u0 + (rows + 0.5 - v0) * (u1 - u0) / (v1 - v0)
    # The first cell whose centre lies to the right of the crossing.
    columns = np.clip(np.floor(crossings + 0.5), 0, side).astype(int)
    toggles = np.bincount(rows * (side + 1) + columns, minlength=side * (side + 1))
    odd = (toggles & 1).astype(np.uint8).reshape(side, side + 1)
    return np.bitwise_xor.accumulate(odd, axis=1)[:, :side] != 0


def _contains(ring: Ring, points: Float[np.ndarray, 'm 2']) -> Bool[np.ndarray, ' m']:
    """Returns whether a ring contains points."""
    (u0, v0), (u1, v1) = (each.T for each in _edges(ring))
    x, y = points.T[..., None]
    crossed = (v0 <= y) != (v1 <= y)
    with np.errstate(divide='ignore', invalid='ignore'):
        left = u0 + (y - v0) * (u1 - u0) / (v1 - v0) < x
    return (crossed & left).sum(axis=1) % 2 == 1


def _cut_edges(ring: Ring, limits: tuple[int, int]) -> Float[np.ndarray, 'm 2']:
    """Returns the ends of what is left of edges within (0, 0, *limits) (Liang and Barsky 1984)."""
    start, end = _edges(ring)
    step = end - start
    first, last = np.zeros(len(ring)), np.ones(len(ring))
    with np.errstate(divide='ignore', invalid='ignore'):
        for axis, limit in enumerate(limits):
            ends = (np.array([[0.0], [limit]]) - start[:, axis]) / step[:, axis]
            still = step[:, axis] == 0
            outside = still & ((start[:, axis] < 0) | (start[:, axis] > limit))
            enters = np.where(still, np.where(outside, np.inf, -np.inf), ends.min(axis=0))
            leaves = np.where(still, np.inf, ends.max(axis=0))
            first, last = np.maximum(first, enters), np.minimum(last, leaves)
    kept = first <= last
    ends = np.concatenate([start[kept] + share[kept, None] * step[kept] for share in (first, last)])
    return np.clip(ends, 0, limits)
