"""Masks that were painted: which pixels count, and which patches they hide."""

import numpy as np
import pytest
from PIL import Image

from mae_jax.errors import UserError
from mae_jax.inference.painted import hidden_patches, read_painted

HERE = (2, 3)  # the row and column that are painted


def save(path, array):
    Image.fromarray(array).save(path)
    return path


def rgba(background, paint):
    pixels = np.full((4, 5, 4), background, np.uint8)
    pixels[HERE] = paint
    return pixels


def drawings():
    """Name -> image of 5 x 4 pixels with one painted."""
    grey = np.zeros((4, 5), np.uint8)
    grey[HERE] = 1
    palette = Image.fromarray(grey).convert('P')
    palette.putpalette([0, 0, 0, 200, 10, 10])
    clear = Image.fromarray(1 - grey).convert('P')  # colour 1, black, is transparent
    clear.putpalette([255, 255, 255, 0, 0, 0])
    clear.info['transparency'] = 1
    return {
        'grey': Image.fromarray(grey),
        'bits': Image.fromarray(grey.astype(bool)),
        'deep': Image.fromarray(grey.astype(np.uint16)),
        'red': Image.fromarray(rgba(0, (9, 0, 0, 0))[..., :3]),
        'opaque': Image.fromarray(rgba((0, 0, 0, 255), (0, 0, 9, 255))),
        'layer': Image.fromarray(rgba((255, 255, 255, 0), (0, 0, 0, 255))),  # black paint
        'soft': Image.fromarray(rgba(0, (255, 255, 255, 1))),
        'grey_layer': Image.fromarray(rgba((7, 7, 7, 0), (0, 0, 0, 9))).convert('LA'),
        'palette': palette,
        'clear': clear,
    }


@pytest.mark.parametrize('name', drawings())
def test_what_is_not_transparent_or_else_not_black_is_painted(tmp_path, name):
    drawings()[name].save(tmp_path / 'mask.png')
    painted = read_painted(tmp_path / 'mask.png')
    assert painted.shape == (4, 5) and painted.dtype == bool
    assert np.argwhere(painted).tolist() == [list(HERE)]


def hidden(mask, image, **options):
    options = dict(image_size=(8, 8), channels=3, crop_share=1.0) | options
    return hidden_patches([mask], [image], 2, **options)[0]


def dots(*places, size=(20, 30)):
    pixels = np.zeros(size, np.uint8)
    for place in places:
        pixels[place] = 255
    return pixels


@pytest.fixture
def image(tmp_path):
    """30 x 20 pixels, resized to 12 x 8 and cropped to 8 x 8: a patch is 5 x 5 of its pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    return save(tmp_path / 'image.png', noise)


def test_a_patch_is_hidden_if_anything_in_it_is_painted(tmp_path, image):
    places = (0, 5), (7, 12), (19, 24)  # corners of what is seen, columns 5 to 24; and between
    mask = save(tmp_path / 'mask.png', dots(*places, (3, 4), (3, 25)))
    expected = np.zeros((4, 4), bool)
    expected[0, 0] = expected[1, 1] = expected[3, 3] = True
    np.testing.assert_array_equal(hidden(mask, image).reshape(4, 4), expected)


def test_a_mask_follows_the_crop_of_a_share(tmp_path, image):
    # Resized to cover 10 x 10 (8 / .8): 15 x 10, cropped at row 1 and column 4 (3.5, to even):
    # 2 pixels each of the image's for one. A patch is 4 x 4 of them, from row 2, column 8 on.
    mask = save(tmp_path / 'mask.png', dots((2, 8), (9, 11), (17, 23)))
    expected = np.zeros((4, 4), bool)
    expected[0, 0] = expected[1, 0] = expected[3, 3] = True
    np.testing.assert_array_equal(hidden(mask, image, crop_share=0.8).reshape(4, 4), expected)


def test_a_pixel_between_patches_hides_both(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8)
    image = save(tmp_path / 'image.png', noise)
    mask = save(tmp_path / 'mask.png', dots((2, 7), size=(10, 10)))  # a patch is 2.5 x 2.5
    expected = np.zeros((4, 4), bool)
    expected[:2, 2:] = True
    np.testing.assert_array_equal(hidden(mask, image).reshape(4, 4), expected)


def test_a_turned_photograph_is_painted_as_it_is_seen(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # stored lying on its side
    photograph = Image.fromarray(np.zeros((30, 20, 3), np.uint8))
    photograph.save(tmp_path / 'photo.jpg', exif=exif)
    mask = save(tmp_path / 'mask.png', dots((7, 12)))
    seen = hidden(mask, tmp_path / 'photo.jpg', apply_exif=True)
    assert np.flatnonzero(seen).tolist() == [5]
    with pytest.raises(UserError, match='30 x 20 pixels, and its image .* 20 x 30'):
        hidden(mask, tmp_path / 'photo.jpg', apply_exif=False)


def test_one_mask_serves_all_images_or_each_has_its_own(tmp_path, image):
    first = save(tmp_path / 'a.png', dots((0, 5)))
    second = save(tmp_path / 'b.png', dots((19, 24)))
    options = dict(image_size=(8, 8), channels=3, crop_share=1.0)
    own = hidden_patches([first, second], [image, image], 2, **options)
    assert [np.flatnonzero(row).tolist() for row in own] == [[0], [15]]
    shared = hidden_patches([second], [image, image], 2, **options)
    assert [np.flatnonzero(row).tolist() for row in shared] == [[15], [15]]
    with pytest.raises(UserError, match='--mask names 2 files for 3 images'):
        hidden_patches([first, second], [image] * 3, 2, **options)


@pytest.mark.parametrize(
    ('pixels', 'message'),
    [
        (dots((0, 5), size=(20, 20)), 'mask.png has 20 x 20 pixels, and its image .*30 x 20'),
        (dots(), 'mask.png hides nothing of .*image.png'),
        (dots((3, 0), (3, 29)), 'mask.png hides nothing of .*cropped'),
        (255 - dots((0, 0)), 'mask.png hides all of .*image.png'),
    ],
)
def test_a_mask_that_does_not_suit_its_image_is_named(tmp_path, image, pixels, message):
    with pytest.raises(UserError, match=message):
        hidden(save(tmp_path / 'mask.png', pixels), image)


def test_what_is_no_image_is_no_mask(tmp_path, image):
    (tmp_path / 'mask.png').write_text('no picture')
    with pytest.raises(UserError, match='the mask .*mask.png cannot be read as an image'):
        hidden(tmp_path / 'mask.png', image)
    with pytest.raises(UserError, match='missing.png cannot be read'):
        hidden(tmp_path / 'missing.png', image)
