"""Views of pairs: mmsegmentation's steps, by torchvision's operations on image and mask."""

import contextlib
import functools
import io

import numpy as np
import pytest
from helpers.images import encode, smooth_picture
from helpers.pairs import FILL, VIEWS, blocks, pair
from PIL import Image

from mae_jax.data.images.decode import BadImage
from mae_jax.data.images.masks import MaskValues
from mae_jax.data.transforms.color_jitter import ColorJitter
from mae_jax.data.transforms.pairs import crop_box, eval_pair, fitted, train_pairs
from mae_jax.data.transforms.photometric import PhotometricDistortion
from mae_jax.errors import UserError

PADDING = (124, 116, 104)
OPTIONS = dict(VIEWS, image_size=(32, 40))


def train(record, index=0, **options):
    views = train_pairs(record, **dict(seed=3, epoch=2, index=index) | OPTIONS | options)
    return views['image'], views['mask']


def rescaled(width, height, long, short):
    """Restates mmcv's `rescale_size`: (new width, new height)."""
    factor = min(long / max(height, width), short / min(height, width))
    return int(width * factor + 0.5), int(height * factor + 0.5)


def drawn_crop(mask, rng, crop, share):
    """Restates mmsegmentation's `RandomCrop`: (top, left)."""

    def draw():
        tops, lefts = max(mask.shape[0] - crop[0], 0), max(mask.shape[1] - crop[1], 0)
        return int(rng.integers(0, tops + 1)), int(rng.integers(0, lefts + 1))

    top, left = draw()
    for _ in range(10):
        labels, counts = np.unique(
            mask[top : top + crop[0], left : left + crop[1]], return_counts=True
        )
        counts = counts[labels != 255]
        if len(counts) > 1 and counts.max() / counts.sum() < share:
            break
        top, left = draw()
    return top, left


def by_pillow_and_numpy(picture, mask, size, box, flip, crop):
    """Resizes, crops, flips and pads without torchvision; the mask by indexing alone."""
    rows, columns = (
        # A sum, as Pillow's: of a pixel between two, rounding decides which is nearer.
        np.cumsum([0.5 * old / new, *(new - 1) * [old / new]]).astype(int)
        for new, old in zip(size[::-1], mask.size[::-1], strict=True)
    )
    pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR))
    numbers = np.asarray(mask)[rows[:, None], columns]
    top, left = box
    pixels, numbers = (x[top:, left:][: crop[0], : crop[1]] for x in (pixels, numbers))
    if flip:
        pixels, numbers = pixels[:, ::-1], numbers[:, ::-1]
    after = [(0, a - b) for a, b in zip(crop, numbers.shape, strict=True)]
    bands = [np.pad(pixels[..., i], after, constant_values=PADDING[i]) for i in range(3)]
    return np.stack(bands, -1), np.pad(numbers, after, constant_values=255)


def by_torchvision(picture, mask, size, box, flip, crop):
    functional = pytest.importorskip('torchvision.transforms.v2.functional')
    modes = functional.InterpolationMode
    picture = functional.resize(picture, size[::-1], modes.BILINEAR)
    mask = functional.resize(mask, size[::-1], modes.NEAREST)
    height, width = (min(a, b) for a, b in zip(crop, size[::-1], strict=True))
    results = []
    for image, fill in ((picture, PADDING), (mask, 255)):
        image = functional.crop(image, *box, height, width)
        image = functional.horizontal_flip(image) if flip else image
        padding = [0, 0, crop[1] - width, crop[0] - height]
        results.append(np.asarray(functional.pad(image, padding, fill=fill)))
    return results


@pytest.mark.parametrize('oracle', [by_pillow_and_numpy, by_torchvision])
@pytest.mark.parametrize(('width', 'height'), [(75, 50), (40, 61), (8, 8), (300, 20), (43, 43)])
def test_a_view_is_mmsegmentations_resize_crop_flip_and_padding(oracle, width, height):
    record = pair(1, width, height)
    picture, mask = (Image.open(io.BytesIO(record[name])) for name in ('image', 'mask'))
    flips, padded, crop = set(), set(), OPTIONS['image_size']
    for index in range(12):
        (ours,), (numbers,) = train(record, index)
        rng = np.random.default_rng((3, 1, 2, index))
        ratio = rng.uniform(0.5, 2.0)
        size = rescaled(width, height, int(128 * ratio), int(32 * ratio))
        resized = np.asarray(mask.resize(size, Image.Resampling.NEAREST))
        box = drawn_crop(resized, rng, crop, 0.75)
        flip = rng.random() < 0.5
        pixels, expected = oracle(picture, mask, size, box, flip, crop)
        np.testing.assert_array_equal(ours, pixels)
        np.testing.assert_array_equal(numbers, expected)
        assert (ours.dtype, numbers.dtype) == (np.uint8, np.uint8)
        flips.add(bool(flip))
        padded.add((expected == 255).any())
    assert flips == {True, False} and True in padded


def test_bilinear_is_antialiased():
    """A plain two-tap interpolation, as OpenCV's, would see every fourth column alone."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    record = {'image': stripes, 'mask': np.zeros((64, 64), np.uint8), 'name': 'stripes'}
    fixed = dict(image_size=(16, 16), sides=(16, 16), resize_ratio=(1.0, 1.0))
    (ours,), _ = train(record, **fixed, max_class_share=1.0, flip=False)
    assert abs(ours.astype(int) - 128).max() < 20


def test_augmentation_changes_the_image_alone_and_not_the_padding():
    record = pair(1, 75, 50)
    for augment in (PhotometricDistortion(), ColorJitter(0.4, 0.4, 0.4, 0.1)):
        changed = 0
        for index in range(8):
            (plain,), (mask,) = train(record, index)
            (ours,), (same,) = train(record, index, augment=augment)
            np.testing.assert_array_equal(mask, same)
            inside = (plain != PADDING).any(-1)
            height, width = inside.any(1).sum(), inside.any(0).sum()
            picture = Image.fromarray(plain[:height, :width])
            drawn = np.asarray(augment(picture, np.random.default_rng((3, 2, 2, index))))
            np.testing.assert_array_equal(ours[:height, :width], drawn)
            assert (ours[height:] == PADDING).all() and (ours[:, width:] == PADDING).all()
            changed += (ours != plain).any()
        assert changed >= 5


def test_a_view_depends_on_seed_epoch_and_index_alone():
    run = functools.partial(train, pair(2, 60, 50), augment=PhotometricDistortion())
    for ours, same in zip(run(), run(), strict=True):
        np.testing.assert_array_equal(ours, same)
    for other in ({'seed': 1}, {'epoch': 1}, {'index': 1}):
        assert (run()[0] != run(**other)[0]).any()


def test_of_several_views_the_first_is_that_of_one():
    images, masks = train(pair(2, 60, 50), repeats=3)
    assert images.shape == (3, 32, 40, 3) and masks.shape == (3, 32, 40)
    (first,), (mask,) = train(pair(2, 60, 50))
    np.testing.assert_array_equal(images[0], first)
    np.testing.assert_array_equal(masks[0], mask)
    assert (images[1] != images[0]).any() and (images[2] != images[1]).any()


def test_crops_avoid_what_is_almost_one_class():
    """Without the rule about nine tenths of these crops would see class 0 alone."""
    mask = np.zeros((64, 640), np.uint8)
    mask[:, 300:332] = 1

    def share(index, limit):
        box = crop_box(mask, (64, 64), np.random.default_rng(index), limit, 255)
        return (mask[box] == 0).mean()

    limited, free = ([share(i, limit) for i in range(200)] for limit in (0.75, 1.0))
    assert np.mean(np.array(free) == 1) > 0.7
    assert np.mean(np.array(limited) < 0.75) > 0.4 > np.mean(np.array(free) < 0.75) + 0.2


def test_ignored_pixels_do_not_count_in_the_share_of_a_class():
    mask = np.full((8, 80), 255, np.uint8)
    mask[:, 40], mask[:, 41] = 1, 2
    hits = 0
    for index in range(100):
        rows, columns = crop_box(mask, (8, 8), np.random.default_rng(index), 0.75, 255)
        hits += columns.start <= 40 and columns.stop >= 42
    assert hits > 40  # of a single crop, a tenth


def test_more_than_255_classes_have_another_number_for_none():
    record = {'image': np.zeros((10, 10, 3), np.uint8), 'name': 'deep'}
    record['mask'] = np.arange(100, dtype=np.uint16).reshape(10, 10) + 220
    record['mask'][0, 0] = 9999
    values = MaskValues(320, (9999,))
    _, (mask,) = train(record, values=values, sides=(10, 10), resize_ratio=(1.0, 1.0))
    assert mask.dtype == np.int32
    assert sorted(np.unique(mask)) == [*range(221, 320), 65535]


def test_data_of_other_depths_are_resized_band_by_band():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(20, 30, 4)).astype(np.float32)
    record = {'image': image, 'mask': blocks(0, 30, 20), 'name': 'data'}
    options = dict(channels=4, fill=(0.5, 1.5, 2.5, 3.5), resize_ratio=(0.6, 0.6), flip=False)
    (ours,), (mask,) = train(record, **options, max_class_share=1.0)
    band = Image.fromarray(np.ascontiguousarray(image[..., 1])).resize((29, 19), Image.BILINEAR)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours[:19, :29, 1], np.asarray(band))
    assert (ours[19:] == options['fill']).all() and (ours[:, 29:] == options['fill']).all()
    assert (mask[19:] == 255).all() and (mask[:19, :29] < 5).all()
    with pytest.raises(UserError, match='Photometric distortion is defined for 8-bit'):
        train(record, **options, augment=PhotometricDistortion())


def test_an_image_of_evaluation_is_resized_and_its_mask_is_not():
    record = pair(4, 75, 50)
    row = eval_pair(
        record,
        size=(32, 48),
        canvas=(40, 64),
        mask_canvas=(60, 80),
        channels=3,
        values=MaskValues(5),
        fill=FILL,
    )
    picture = Image.open(io.BytesIO(record['image'])).resize((48, 32), Image.BILINEAR)
    np.testing.assert_array_equal(row['image'][0, :32, :48], np.asarray(picture))
    assert (row['image'][0, 32:] == PADDING).all() and (row['image'][0, :, 48:] == PADDING).all()
    np.testing.assert_array_equal(row['mask'][0, :50, :75], blocks(4, 75, 50))
    assert (row['mask'][0, 50:] == 255).all() and (row['mask'][0, :, 75:] == 255).all()
    assert row['size'].tolist() == [[32, 48]] and row['mask_size'].tolist() == [[50, 75]]
    assert {name: x.dtype.name for name, x in row.items()} == {
        'image': 'uint8',
        'size': 'int32',
        'mask': 'uint8',
        'mask_size': 'int32',
    }


@pytest.mark.parametrize(
    ('size', 'sides', 'expected'),
    [
        ((512, 683), (512, 2048), (512, 683)),
        ((683, 512), (512, 2048), (683, 512)),
        ((100, 1000), (512, 2048), (205, 2048)),
        ((3, 3000), (2, 8), (1, 8)),
        ((375, 500), (256, 1024), (256, 341)),
    ],
)
def test_both_sides_stay_within_their_limits(size, sides, expected):
    assert fitted(size, sides) == expected
    assert fitted(size, sides[::-1]) == expected


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        (
            dict(mask=encode(Image.new('L', (50, 75)), 'PNG')),
            BadImage,
            r'^m\.png has 50 x 75 pixels where its image pair/0 has 75 x 50: make both',
        ),
        (dict(mask=np.full((50, 75), 9)), UserError, r'^m\.png has the value 9'),
        (dict(mask=encode(smooth_picture(0, 75, 50), 'PNG')), UserError, r'^m\.png is an RGB mask'),
        (dict(image=b'no image'), BadImage, r'^pair/0 cannot be read as an image'),
    ],
)
def test_a_pair_that_does_not_fit_is_named(change, error, message):
    record = pair(0, 75, 50) | {'mask_name': 'm.png'} | change
    with pytest.raises(error, match=message) as raised:
        train(record)
    assert type(raised.value) is error


def turned(orientation, width, height):
    """A JPEG of this size as it is stored, with an EXIF orientation."""
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    smooth_picture(0, width, height).save(file, 'JPEG', exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    ('orientation', 'size', 'mask', 'message'),
    [
        (1, (75, 50), (75, 50), None),
        (1, (40, 40), (40, 40), None),
        (6, (75, 50), (75, 50), None),  # not turned either
        (6, (75, 50), (50, 75), r'50 x 75 pixels where .*make both .*set dataset\.apply_exif=True'),
        (6, (40, 40), (40, 40), r'^pair/0 has an EXIF orientation, and its mask may'),
        (3, (75, 50), (75, 50), r'^pair/0 has an EXIF orientation, and its mask may'),
    ],
)
def test_a_mask_of_a_turned_photograph_is_the_right_way_up_or_refused(
    orientation, size, mask, message
):
    upright = size[::-1] if orientation > 4 else size
    record = pair(0, *size) | {'image': turned(orientation, *size), 'mask': blocks(0, *mask)}
    with pytest.raises(BadImage, match=message) if message else contextlib.nullcontext():
        train(record)
    shown = record | {'mask': blocks(0, *upright)}
    train(shown, apply_exif=True)
    if upright != size:
        with pytest.raises(BadImage, match='make both of one size'):
            train(record | {'mask': blocks(0, *size)}, apply_exif=True)


def test_examples_without_a_mask_are_explained():
    record = {name: value for name, value in pair(0, 8, 8).items() if name != 'mask'}
    with pytest.raises(UserError, match=r"^pair/0 has no mask.*'paired_folders'"):
        train(record)


def test_a_picture_is_not_enlarged_beyond_all_bounds():
    record = {'image': np.zeros((4, 4, 3), np.uint8), 'mask': np.zeros((4, 4), int), 'name': 'p'}
    with pytest.raises(BadImage, match='^p is too large when it is resized: 40,000 x 40,000'):
        train(record, sides=(40_000, 40_000), resize_ratio=(1.0, 1.0))
