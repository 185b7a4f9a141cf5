"""The outlines of many objects in a few arrays."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from mae_jax.data.images.outlines import Pixels, decode_runs

LEAST_AREA = 0.1
"""Square pixels below which a polygon has no area: single precision alone makes up a hundredth."""
CHUNK = 1 << 16
"""Polygons whose areas are computed at once."""


@dataclasses.dataclass(frozen=True)
class Outlines:
    """The outlines of objects, in arrays that all worker processes share.

    A million lists of Python would take ten times the memory, in every process.

    Attributes:
      points: corners (x, y) of all polygons, one after another.
      rings: corners of polygon r are rings[r] to rings[r + 1] of the points.
      polygons: of each object, the first of its polygons and the end of them.
      counts: the lengths of all runs.
      runs: of each object, the first of its runs and the end of them.
      sizes: (height, width) of the masks that runs are of; 0 for polygons.
    """

    points: Float32[np.ndarray, 'P 2']
    rings: Int[np.ndarray, ' R']
    polygons: Int[np.ndarray, 'N 2']
    counts: Int[np.ndarray, ' C']
    runs: Int[np.ndarray, 'N 2']
    sizes: Int[np.ndarray, 'N 2']

    def __getitem__(self, number: int) -> list[np.ndarray] | dict[str, Any] | None:
        """Returns one as `read_outline` takes it; None for an object without an outline."""
        first, end = self.runs[number]
        if end > first:
            return {'size': tuple(map(int, self.sizes[number])), 'counts': self.counts[first:end]}
        first, end = self.polygons[number]
        return [self.points[self.rings[i] : self.rings[i + 1]] for i in range(first, end)] or None

    def take(self, rows: Int[np.ndarray, ' n']) -> 'Outlines':
        """Returns those of some objects; what they refer to stays where it is."""
        picked = {name: getattr(self, name)[rows] for name in ('polygons', 'runs', 'sizes')}
        return dataclasses.replace(self, **picked)

    def bounds(self, number: int) -> Float64[np.ndarray, '4']:
        """Returns the box of one; zeros where there is nothing."""
        outline = self[number]
        if isinstance(outline, dict):
            height, width = outline['size']
            box = Pixels(decode_runs(**outline)).bounds(width, height)
            return np.zeros(4) if box is None else box
        if not outline:
            return np.zeros(4)
        points = np.concatenate(outline).astype(float)
        return np.concatenate([points.min(axis=0), points.max(axis=0)])

    def areas(self) -> Float64[np.ndarray, ' N']:
        """Returns the pixels of each mask, or the sum of the areas of its polygons."""
        polygons = np.zeros(len(self.rings))
        for first in range(0, len(self.rings) - 1, CHUNK):
            bounds = self.rings[first : first + CHUNK + 1]
            polygons[first + 1 : first + len(bounds)] = _areas(self.points, bounds)
        runs = np.concatenate([[0], np.cumsum(np.where(self._are_inside(), self.counts, 0))])
        return _between(np.cumsum(polygons), self.polygons) + _between(runs, self.runs)

    def _are_inside(self) -> Bool[np.ndarray, ' C']:
        """Returns whether each run is of the object: every second one is."""
        first = np.zeros(len(self.counts), np.int64)
        begins, ends = self.runs.T
        begins = begins[ends > begins]
        first[begins] = begins
        return (np.arange(len(first)) - np.maximum.accumulate(first)) % 2 == 1


def _between(sums: np.ndarray, bounds: Int[np.ndarray, 'N 2']) -> Float64[np.ndarray, ' N']:
    return (sums[bounds[:, 1]] - sums[bounds[:, 0]]).astype(float)


def _areas(
    points: Float32[np.ndarray, 'P 2'], bounds: Int[np.ndarray, ' n']
) -> Float64[np.ndarray, ' m']:
    """Returns the areas of polygons whose corners lie between these bounds."""
    x, y = points[bounds[0] : bounds[-1]].astype(float).T
    starts, ends = bounds[:-1] - bounds[0], bounds[1:] - bounds[0]
    after = np.arange(1, len(x) + 1)
    after[ends - 1] = starts
    areas = np.abs(np.add.reduceat(x * y[after] - x[after] * y, starts)) / 2
    return np.where(areas < LEAST_AREA, 0, areas)
