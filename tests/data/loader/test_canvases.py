"""Canvases: which images of evaluation share one."""

import itertools

import pytest

from mae_jax.data.loader.canvases import STARTUP, Group, Resized, group

WINDOW, STRIDE = 512, 341


def canvas(size):
    """The smallest size that windows fill exactly, by trying."""
    return tuple(
        next(s for s in itertools.count(WINDOW, STRIDE) if s >= max(side, WINDOW)) for side in size
    )


def resized(sizes, enlarged=1):
    return [Resized(i, (h * enlarged, w * enlarged), (h, w)) for i, (h, w) in enumerate(sizes)]


def cost(groups, batch_size):
    total = 0
    for each in groups:
        pixels = each.canvas[0] * each.canvas[1] + each.mask_canvas[0] * each.mask_canvas[1]
        total += (-(-len(each.images) // batch_size) + STARTUP) * pixels
    return total


def test_images_of_as_many_windows_share_a_canvas():
    sizes = [(512, 683)] * 400 + [(512, 768)] * 400 + [(683, 512)] * 300 + [(512, 2048)] * 200
    groups = group(resized(sizes), canvas, 16)
    assert [(len(each.images), each.canvas) for each in groups] == [
        (800, (512, 853)),
        (300, (853, 512)),
        (200, (512, 2217)),
    ]
    assert [each.mask_canvas for each in groups] == [(512, 768), (683, 512), (512, 2048)]


def test_every_image_is_in_one_group_on_a_canvas_that_holds_it():
    sizes = [(512, 512 + 37 * (i * i % 41)) for i in range(100)]
    images = resized(sizes, 3)
    groups = group(images, canvas, 8)
    assert sorted(image for each in groups for image in each.images) == images
    for each in groups:
        assert each.images == sorted(each.images)  # the order of the source
        for image in each.images:
            assert all(a <= b for a, b in zip(image.size, each.canvas, strict=True))
            assert all(a <= b for a, b in zip(image.original, each.mask_canvas, strict=True))


def test_a_few_odd_images_share_the_canvas_of_others():
    """A batch of one odd image, and a program for it, would cost more than a larger canvas."""
    groups = group(resized([(512, 683)] * 40 + [(512, 900)] + [(512, 1300)]), canvas, 16)
    assert len(groups) == 1 and groups[0].canvas == (512, 1535)
    many = group(resized([(512, 683)] * 4000 + [(512, 1300)]), canvas, 16)
    assert [len(each.images) for each in many] == [4000, 1]


def test_joining_groups_lowers_the_cost():
    images = resized([(512, 512 + 100 * (i % 19)) for i in range(120)] + [(1500, 512)])
    apart = {}
    for image in images:
        apart.setdefault(canvas(image.size), []).append(image)
    apart = [
        Group(each, place, tuple(map(max, *(image.original for image in each), (0, 0))))
        for place, each in apart.items()
    ]
    groups = group(images, canvas, 16)
    assert 1 < len(groups) < len(apart)
    assert cost(groups, 16) < cost(apart, 16)


def test_large_originals_do_not_enlarge_the_masks_of_small_ones():
    small, large = resized([(512, 683)] * 500), resized([(512, 683)] * 300, 8)
    large = [image._replace(index=image.index + 500) for image in large]
    groups = group(small + large, canvas, 16)
    assert [each.mask_canvas for each in groups] == [(512, 683), (4096, 5464)]


def test_a_strip_does_not_share_the_masks_of_other_images():
    """As wide as a mask may be, beside one as high: together they would take a terabyte."""
    strips = [Resized(500, (2, 10**6), (1, 2048)), Resized(501, (10**6, 2), (2048, 1))]
    groups = group(resized([(512, 2048), (2048, 512)] * 250, 2) + strips, canvas, 16)
    assert all(a * b <= 2**23 for _, _, (a, b) in groups)


@pytest.mark.parametrize('batch_size', [1, 3, 64])
def test_the_groups_do_not_depend_on_anything_but_the_arguments(batch_size):
    images = resized([(512, 512 + 97 * (i % 23)) for i in range(60)])
    assert group(images, canvas, batch_size) == group(list(images), canvas, batch_size)
