"""Outlines: drawn in boxes, cut by the edge of a view, unpacked; beside pycocotools and by hand."""

import numpy as np
import pytest
from helpers.scenes import CORNERS, SHAPES, coverage, outline
from pycocotools import mask as masks

from mae_jax.data.images.outlines import (
    Pixels,
    Place,
    Polygons,
    decode_runs,
    read_outline,
    unpack_runs,
)

SIDE = 112


def shape(seed, size=200):
    """A shape of 30 to 80 pixels, in part outside of an image of this size: [n, 2]."""
    rng = np.random.default_rng(seed)
    name = SHAPES[seed % 3]
    return outline(name, rng.uniform(0, size, 2), rng.uniform(30, 80), rng.uniform(0, 6))


def star(seed, size=200):
    """A polygon that is not convex: [n, 2]."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = rng.uniform(20, 110, 9)[:, None]
    return size / 2 + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def inside_by_hand(ring, x, y):
    """Whether a ring contains a point: crossings of a ray to the left, one edge after another."""
    crossings = 0
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if (y0 <= y) != (y1 <= y):
            crossings += x0 + (y - y0) * (x1 - x0) / (y1 - y0) < x
    return crossings % 2 == 1


def cocos_mask(rings, height, width):
    return masks.decode(
        masks.merge(masks.frPyObjects([ring.ravel().tolist() for ring in rings], height, width))
    )


def of_whole(mask, box, side=SIDE):
    """A mask of the whole image, read at the centres of the cells of a box."""
    steps = (np.arange(side) + 0.5) / side
    columns = (box[0] + steps * (box[2] - box[0])).astype(int)
    rows = (box[1] + steps * (box[3] - box[1])).astype(int)
    return mask[np.minimum(rows, len(mask) - 1)[:, None], np.minimum(columns, mask.shape[1] - 1)]


@pytest.mark.parametrize('seed', range(4))
def test_a_cell_is_drawn_where_its_centre_lies_inside(seed):
    rings = [star(seed), shape(seed)]
    box = np.array([13.5, 20.25, 130.0, 171.0])
    drawn = Polygons(rings).within(box, 20)
    assert drawn.dtype == np.uint8 and 0 < drawn.mean() < 1
    for row in range(20):
        for column in range(20):
            x = box[0] + (column + 0.5) * (box[2] - box[0]) / 20
            y = box[1] + (row + 0.5) * (box[3] - box[1]) / 20
            assert drawn[row, column] == any(inside_by_hand(ring, x, y) for ring in rings)


@pytest.mark.parametrize('make', [shape, star])
def test_what_is_drawn_in_a_box_is_pycocotools_mask_of_the_whole_image(make):
    """On a grid as fine as the mask's, and so of boxes of 112 pixels, but for its rounding."""
    shares = []
    for seed in range(20):
        ring = make(seed)
        whole = cocos_mask([ring], 200, 200)
        box = Polygons([ring]).bounds(200, 200)
        if box is None or (box[2:] - box[:2]).min() < 40:
            continue
        corner = np.floor(box[:2])
        box = np.concatenate([corner, corner + SIDE])  # cells are pixels
        expected = np.pad(whole, ((0, SIDE), (0, SIDE)))[
            int(corner[1]) : int(corner[1]) + SIDE, int(corner[0]) : int(corner[0]) + SIDE
        ]
        drawn = Polygons([np.asarray(ring)]).within(box, SIDE)
        seen = Polygons([ring]).bounds(200, 200)[2:] - corner
        drawn = drawn * (np.arange(SIDE)[:, None] < seen[1]) * (np.arange(SIDE) < seen[0])
        shares.append((drawn != expected).mean())
    assert len(shares) > 10
    assert max(shares) < 0.01 and np.mean(shares) < 0.004, (max(shares), np.mean(shares))


def test_areas_are_right_at_any_scale_where_pycocotools_round_to_pixels():
    for radius in (0.7, 3, 40):
        square = outline('square', np.array([50.3, 49.6]), radius, 0.4)
        box = np.concatenate([square.min(axis=0), square.max(axis=0)])
        share = Polygons([square]).within(box, SIDE).mean()
        assert share * np.prod(box[2:] - box[:2]) == pytest.approx(2 * radius**2, rel=5e-3)


def test_overlapping_polygons_are_one_object_and_a_ring_that_crosses_itself_has_a_hole():
    square = np.array([[0, 0], [8, 0], [8, 8], [0, 8]], float)
    both = Polygons([square, square + 4]).within(np.array([0.0, 0, 12, 12]), 12)
    assert both.sum() == 64 + 64 - 16
    inner = square / 2 + 2  # one ring around another, joined by the same edge to and fro
    twice = np.concatenate([square, square[:1], inner, inner[:1]])
    assert Polygons([twice]).within(np.array([0.0, 0, 8, 8]), 8).sum() == 64 - 16


@pytest.mark.parametrize('make', [shape, star])
@pytest.mark.parametrize('seed', range(6))
def test_the_bounds_of_what_is_seen_are_those_of_fine_pixels(make, seed):
    """Of rings that reach beyond (0, 0, 120, 90)."""
    ring, width, height, fine = make(seed), 120, 90, 8
    box = np.array([0.0, 0, width, height])
    drawn = Polygons([ring * fine]).within(np.array([0, 0, width * fine, height * fine]), 960)
    bounds = Polygons([ring]).bounds(width, height)
    if not drawn.any():
        assert bounds is None or np.prod(bounds[2:] - bounds[:2]) < 0.1
        return
    rows, columns = (np.flatnonzero(drawn.any(axis=axis)) for axis in (1, 0))
    expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] * np.tile(box[2:], 2) / 960
    np.testing.assert_allclose(bounds, expected, atol=0.6)


def test_bounds_of_what_covers_the_view_or_is_outside_of_it():
    large = np.array([[-50, -50], [500, -50], [500, 500], [-50, 500]], float)
    np.testing.assert_array_equal(Polygons([large]).bounds(30, 20), [0, 0, 30, 20])
    assert Polygons([large + 1000]).bounds(30, 20) is None
    assert Polygons([np.array([[5.0, -9], [9, -3], [2, -1]])]).bounds(30, 20) is None
    # Two arms that reach in from above: what lies between them beyond the edge does not count.
    arms = np.array([[4, -9], [26, -9], [26, 5], [24, 5], [24, -4], [6, -4], [6, 7], [4, 7]], float)
    np.testing.assert_allclose(Polygons([arms]).bounds(30, 20), [4, 0, 26, 7])
    np.testing.assert_allclose(Polygons([arms]).bounds(20, 20), [4, 0, 6, 7])


@pytest.mark.parametrize('flipped', [False, True])
def test_pixels_are_seen_like_the_polygon_that_they_are_of(flipped):
    rows, columns = np.indices((40, 50))
    mask = ((rows >= 6) & (rows < 30) & (columns >= 9) & (columns < 44)).astype(np.uint8)
    square = np.array([[9, 6], [44, 6], [44, 30], [9, 30]], float)
    scale, width, height = 1.7, 60, 45
    place = Place(scale, -12.0, scale, -5.0)
    if flipped:
        place = Place(-scale, width + 12.0, scale, -5.0)
    pixels, polygon = Pixels(mask).moved(place), Polygons([square]).moved(place)
    box = polygon.bounds(width, height)
    np.testing.assert_allclose(pixels.bounds(width, height), box, atol=1e-9)
    wide = np.array([1.0, 2.0, 57.0, 44.0])
    np.testing.assert_array_equal(pixels.within(wide, 80), polygon.within(wide, 80))
    assert pixels.within(box, SIDE).all()
    assert Pixels(mask).moved(Place(1, -48.0, 1, 0.0)).bounds(60, 45) is None


@pytest.mark.parametrize('seed', range(5))
def test_runs_are_unpacked_and_decoded_as_by_pycocotools(seed):
    rng = np.random.default_rng(seed)
    mask = (rng.random((37, 23)) < 0.1 + 0.2 * seed).astype(np.uint8)
    mask[:, 5:9] = seed % 2
    packed = masks.encode(np.asfortranarray(mask))
    counts = unpack_runs(packed['counts'])
    np.testing.assert_array_equal(decode_runs(counts, (37, 23)), mask)
    given = read_outline({'size': (37, 23), 'counts': counts}, np.zeros(4), (37, 23))
    np.testing.assert_array_equal(given.mask, mask)


def test_long_runs_are_unpacked():
    for counts in ([0, 10**6, 5, 10**6 - 5, 0, 1], [2_000_000], [1, 1999998, 1]):
        size = [2000, sum(counts) // 2000 + 1]
        counts = counts + [size[0] * size[1] - sum(counts)]
        packed = masks.frPyObjects({'size': size, 'counts': counts}, *size)
        assert unpack_runs(packed['counts']).tolist() == counts


@pytest.mark.parametrize('text', [b'', b'~', b'o', b'1o', b'\x00', b'oooooooooooooooo1'])
def test_damaged_runs_are_refused(text):
    with pytest.raises(ValueError, match='compressed runs'):
        unpack_runs(text)


def test_an_object_without_an_outline_fills_its_box():
    box = np.array([3.0, 4, 10, 9])
    given = read_outline(None, box, (20, 20))
    assert given.within(box, 9).all()
    np.testing.assert_array_equal(given.bounds(8, 8), [3, 4, 8, 8])
    with pytest.raises(ValueError, match=r'a mask of \(4, 5\) for an image of \(5, 4\)'):
        read_outline(np.zeros((4, 5)), box, (5, 4))


def test_the_shapes_of_scenes_are_those_that_they_are_called():
    """Guards the drawings that other tests and the benchmark learn from."""
    assert {name: CORNERS[name] for name in SHAPES} == {'disc': 32, 'square': 4, 'triangle': 3}
    drawn = coverage(outline('disc', np.array([32.0, 32.0]), 20, 0.0), 64, 64)
    assert drawn.sum() == pytest.approx(np.pi * 20**2, rel=0.01)
