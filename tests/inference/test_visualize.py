"""Images for `mae-jax visualize` are read as for evaluation."""

import numpy as np
import pytest
from helpers.photographs import photograph
from PIL import Image

from mae_jax.errors import UserError
from mae_jax.inference.images import read_images


def test_images_are_read_as_evaluation_sees_them(tmp_path):
    paths = []
    for number, size in enumerate([(30, 20), (16, 48)]):
        paths.append(str(tmp_path / f'{number}.png'))
        Image.fromarray(photograph(number)).resize(size).save(paths[-1])
    actual = read_images(paths, image_size=(12, 8), channels=3, crop_share=1.0)
    for path, image in zip(paths, actual, strict=True):
        picture = Image.open(path)
        scale = max(12 / picture.height, 8 / picture.width)
        size = int(picture.width * scale), int(picture.height * scale)
        resized = picture.resize(size, Image.Resampling.BICUBIC)
        left, top = round((size[0] - 8) / 2), round((size[1] - 12) / 2)
        expected = np.asarray(resized.crop((left, top, left + 8, top + 12)))
        np.testing.assert_array_equal(image, expected)


def test_no_images_a_missing_one_and_other_files_are_refused(tmp_path):
    options = dict(image_size=(8, 8), channels=3)
    with pytest.raises(UserError, match='no image'):
        read_images([], **options)
    with pytest.raises(UserError, match='missing.png cannot be read'):
        read_images([str(tmp_path / 'missing.png')], **options)
    with pytest.raises(UserError, match='cannot be read: it is not a regular file'):
        read_images([str(tmp_path)], **options)
    text = tmp_path / 'text.png'
    text.write_text('no picture')
    with pytest.raises(UserError, match='text.png cannot be read as an image'):
        read_images([str(text)], **options)
