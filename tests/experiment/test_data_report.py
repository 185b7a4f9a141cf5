"""What the start of a run says of its data."""

import re

import numpy as np
import pytest
import tifffile
from PIL import Image

from configs import default
from mae_jax.config.data import decoding, make_sources
from mae_jax.config.model import statistics
from mae_jax.data.images.decode import decode
from mae_jax.data.sources.arrays import ArraySource
from mae_jax.errors import UserError
from mae_jax.experiment.data_report import describe_data, implausible_values
from mae_jax.tasks.preprocess import normalize


def config_of(**fields):
    config = default.get_config()
    config.dataset.update(fields)
    return config


def source_of(images):
    return ArraySource(np.asarray(images), np.zeros(len(images), int), ['any'])


def noise(largest, dtype, channels=3):
    values = np.random.default_rng(0).uniform(0, largest, (5, 16, 16, channels))
    return source_of(values.astype(dtype))


GREY = dict(channels=1, mean=(0.5,), std=(0.25,))


@pytest.mark.parametrize(
    ('source', 'fields', 'warning'),
    [
        (noise(256, np.uint8), {}, None),
        (noise(65535, np.uint16), {}, 'uint16.*dataset.scale=255.*65535'),
        (noise(2000, np.int16), {}, 'int16.*dataset.scale=255.*32767'),
        (noise(65535, np.uint16), {'scale': 65535.0}, None),
        (noise(1, np.float32), {'scale': 1.0}, None),
        (noise(1, np.float32), {}, r'float32.*standard deviation is 0\.005'),
        (noise(256, np.uint8), {'scale': 1.0}, 'uint8.*dataset.scale=1,.*check these fields'),
        (noise(256, np.uint8), {'scale': 1.0, 'mean': (124,) * 3, 'std': (58,) * 3}, None),
        (noise(4000, np.uint16, 1), GREY, 'uint16'),
        (source_of(np.full((2, 8, 8, 3), 7, np.uint8)), {}, None),
    ],
    ids=range(10),
)
def test_values_that_the_scale_does_not_fit_are_said_at_the_start(source, fields, warning):
    config = config_of(**fields)
    lines = implausible_values(config, source)
    if warning is None:
        assert lines == []
        return
    (line,) = lines
    assert re.search(warning, line)
    normalized = np.asarray(normalize(source.images[:1], **statistics(config)))
    spread = normalized.std((0, 1, 2)).max()
    assert not 0.02 < spread < 5  # it is right: so do the values reach the model


def test_images_that_cannot_be_read_are_left_to_the_loader(tmp_path):
    for i in range(5):
        (tmp_path / f'{i}.jpg').write_bytes(b'no image')
    config = config_of(name='folder', path=str(tmp_path))
    lines = describe_data(config, *make_sources(config))
    assert lines == ['5 images, no classes, 1 held out (no val/)']


def test_a_run_says_what_it_read_of_both_splits(tmp_path):
    for name in ('train/a/1', 'train/b/2', 'Val/a/3', 'test/a/4'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 4)).save(tmp_path / f'{name}.png')
    (tmp_path / 'train/a/5.xcf').write_bytes(b'x')
    config = config_of(name='folder', path=str(tmp_path))
    line = describe_data(config, *make_sources(config))[0]
    assert line == (
        '2 images in train/, 2 classes; passed over 1 .xcf; 1 image held out in Val/, 2 classes; '
        'none of b; not read: test/'
    )


def test_bands_and_missing_values_of_a_config_reach_the_decoder(tmp_path):
    array = np.random.default_rng(0).integers(1, 200, (8, 9, 5), np.uint16)
    array[0, 0] = 0
    tifffile.imwrite(tmp_path / 'a.tif', array, photometric='minisblack', planarconfig='contig')
    fields = decoding(config_of(bands=(3, 2, 1), nodata=0.0).dataset)
    record = {'image': (tmp_path / 'a.tif').read_bytes(), 'name': 'a.tif'}
    expected = array[..., [3, 2, 1]]
    mean = expected.reshape(-1, 3)[1:].mean(0)
    expected = expected.copy()
    expected[0, 0] = np.rint(mean)
    np.testing.assert_array_equal(decode(record, **fields), expected)


@pytest.mark.parametrize('bands', [(1, 2), (0, 1, 2, 3), (0, 1, -1), (0, 1, 1.5)])
def test_bands_that_do_not_fit_the_channels_are_refused(bands):
    with pytest.raises(UserError, match=r'dataset\.bands=.*dataset\.channels'):
        decoding(config_of(bands=bands).dataset)
