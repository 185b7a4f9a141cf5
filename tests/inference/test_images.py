"""`mae_jax.load_images`: pixels against Pillow, normalised by hand."""

import threading

import numpy as np
import pytest
from helpers.official_files import SQUARE, save_official
from helpers.photographs import photograph
from PIL import Image

import mae_jax
from mae_jax.errors import UserError
from mae_jax.inference import images as images_module
from mae_jax.interop.convert import convert

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A model of RGB images of 8 x 8 pixels."""
    folder = tmp_path_factory.mktemp('model')
    path, _ = save_official(folder / 'official.safetensors', SQUARE)
    given = {'heads': 3, 'decoder_heads': 2}
    convert(path, folder / 'm.safetensors', given=given, run=False, say=lambda line: None)
    return folder / 'm.safetensors'


def save(path, number, size, mode='RGB'):
    picture = Image.fromarray(photograph(number)).resize(size).convert(mode)
    picture.save(path)
    return str(path)


def by_pillow(path, size):
    """Resizes the shorter side to 8/7 of a square, crops its centre, and normalises."""
    picture = Image.open(path).convert('RGB')
    short = round(size / 0.875) if size <= 224 else size
    scale = short / min(picture.size)
    whole = tuple(
        short if side == min(picture.size) else int(side * scale) for side in picture.size
    )
    picture = picture.resize(whole, Image.Resampling.BICUBIC)
    left, top = (round((side - size) / 2) for side in picture.size)
    pixels = np.asarray(picture.crop((left, top, left + size, top + size)), np.float64)
    return (pixels / 255 - MEAN) / STD


@pytest.mark.parametrize('size', [None, 16])
def test_pixels_are_those_of_pillow_normalised_for_the_model(model, tmp_path, size):
    files = [
        save(tmp_path / 'wide.png', 0, (60, 40)),
        save(tmp_path / 'tall.png', 1, (33, 50)),
        save(tmp_path / 'grey.png', 2, (40, 40), 'L'),
        save(tmp_path / 'palette.png', 3, (40, 40), 'P'),
    ]
    actual = mae_jax.load_images(model, files, image_size=size)
    assert actual.shape == (4, size or 8, size or 8, 3) and actual.dtype == np.float32
    for image, file in zip(actual, files, strict=True):
        np.testing.assert_allclose(image, by_pillow(file, size or 8), atol=1e-5)


def test_one_file_is_a_batch_of_one_and_feeds_the_encoder(model, tmp_path):
    file = save(tmp_path / 'a.png', 0, (40, 40))
    images = mae_jax.load_images(model, file)
    encoder, params = mae_jax.load_encoder(model)
    features = encoder.apply({'params': params}, images, method='features', output='mean')
    assert images.shape == (1, 8, 8, 3) and features.shape == (1, SQUARE.width)


def test_scale_and_channels_are_those_of_the_model(pretrained, tmp_path):
    pixels = np.full((8, 8), 51, np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    actual = mae_jax.load_images(pretrained[0], [tmp_path / 'a.png'])
    np.testing.assert_allclose(actual, np.full((1, 8, 8, 1), (51 / 255 - 0.305) / 0.376), rtol=1e-5)


def test_a_file_that_cannot_be_read_is_named(model, tmp_path):
    good = save(tmp_path / 'good.png', 0, (40, 40))
    (tmp_path / 'bad.png').write_bytes(b'no picture')
    with pytest.raises(UserError, match=r'bad\.png cannot be read as an image'):
        mae_jax.load_images(model, [good, tmp_path / 'bad.png'])
    with pytest.raises(UserError, match=r'nowhere\.png cannot be read'):
        mae_jax.load_images(model, tmp_path / 'nowhere.png')
    with pytest.raises(UserError, match='no image'):
        mae_jax.load_images(model, [])


def test_images_of_several_depths_are_named(model, tmp_path):
    files = [save(tmp_path / 'a.png', 0, (40, 40)), str(tmp_path / 'b.npy')]
    np.save(files[1], np.zeros((40, 40, 3), np.uint16))
    with pytest.raises(UserError, match=r'a\.png is uint8 and .*b\.npy uint16'):
        mae_jax.load_images(model, files)


def test_images_are_decoded_by_several_threads(model, tmp_path, monkeypatch):
    monkeypatch.setattr(images_module, 'num_cores', lambda: 2)
    together = threading.Barrier(2, timeout=60)
    original = images_module.eval_transform

    def transform(record, **options):
        together.wait()  # for ever, if one thread decoded all
        return original(record, **options)

    monkeypatch.setattr(images_module, 'eval_transform', transform)
    files = [save(tmp_path / f'{n}.png', n, (40, 40)) for n in range(4)]
    assert len(mae_jax.load_images(model, files)) == 4
