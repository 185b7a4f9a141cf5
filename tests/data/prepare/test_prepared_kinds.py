"""A prepared data set has the pixels of its source: bands, orientation, depth, missing values."""

import io

import numpy as np
import pytest
import tifffile
from PIL import Image

from mae_jax.data.images.decode import BadImage, decode
from mae_jax.data.prepare.prepare import prepare
from mae_jax.data.prepare.reduce import reduce_image
from mae_jax.data.sources.make import make_source
from mae_jax.data.transforms.views import eval_transform
from mae_jax.errors import UserError

CASES = {  # dtype, bands, photometric, extra samples
    'infrared': ('u1', 4, 'rgb', (0,)),
    'premultiplied': ('u1', 4, 'rgb', (1,)),
    'five bands': ('u1', 5, 'rgb', (0, 0)),
    'deep colours': ('u2', 3, 'rgb', None),
    'deep grey': ('u2', 1, 'minisblack', None),
    'inverted': ('u2', 1, 'miniswhite', None),
    'signed bytes': ('i1', 2, 'minisblack', (0,)),
    'floats': ('f4', 6, 'minisblack', (0,) * 5),
}


def tiff(dtype, bands, photometric, extra, orientation=1):
    rng = np.random.default_rng(bands)
    shape = (40, 60) if bands == 1 else (40, 60, bands)
    array = (rng.random(shape) * 100).astype(dtype)
    buffer = io.BytesIO()
    tags = [(274, 'H', 1, orientation, True)]
    planes = {'planarconfig': 'contig'} if bands > 1 else {}
    tifffile.imwrite(
        buffer,
        array,
        photometric=photometric,
        extrasamples=extra,
        extratags=tags,
        **planes,
    )
    return buffer.getvalue()


@pytest.mark.parametrize('orientation', [1, 6, 8])
@pytest.mark.parametrize('case', CASES)
@pytest.mark.parametrize('short_side', [20, 64])
def test_a_reduced_image_is_evaluated_as_its_original(case, orientation, short_side):
    record = {'image': tiff(*CASES[case], orientation), 'name': 'some/file'}
    bands = CASES[case][1]
    stored = record | {'image': reduce_image(record, short_side, 95, bands)}
    assert (stored['image'] == record['image']) == (short_side == 64)
    for apply_exif in (False, True):
        options = dict(image_size=(20, 20), channels=bands, apply_exif=apply_exif, crop_share=1.0)
        before, after = (eval_transform(each, **options) for each in (record, stored))
        assert after.dtype == before.dtype
        # Turned, the two passes of a resize come in the other order, and round otherwise.
        tolerance = 0 if not apply_exif else 1 if CASES[case][0] != 'f4' else 1e-4
        np.testing.assert_allclose(after.astype(float), before.astype(float), atol=tolerance)
        shape = np.asarray(decode(stored, bands, apply_exif)).shape[:2]
        assert (shape[0] > shape[1]) == (apply_exif and orientation > 4)


def write_folder(root, dtype='f4'):
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 2)):
        (root / split).mkdir(parents=True)
        for i in range(count):
            array = rng.normal(size=(30, 30, 5)).astype(dtype)
            array[:3] = 9999 if dtype == 'u2' else -9999
            np.save(root / split / f'{i}.npy', array)


def test_missing_values_are_replaced_before_an_image_is_reduced(tmp_path, recwarn):
    write_folder(tmp_path / 'in')
    options = dict(channels=5, workers=1, short_side=16, nodata=-9999.0, log=lambda text: None)
    for _ in range(2):  # the second call finds the same options
        prepare(str(tmp_path / 'in'), str(tmp_path / 'out'), **options)
    source = make_source('prepared', 'train', path=str(tmp_path / 'out'), channels=5)
    for i in range(4):
        pixels = decode(source[i], 5)
        assert pixels.shape == (16, 16, 5)
        assert abs(pixels).max() < 10
    with pytest.raises(UserError, match='--nodata was -9999.0, now unset'):
        prepare(str(tmp_path / 'in'), str(tmp_path / 'out'), **options | {'nodata': None})
    assert not [warning for warning in recwarn if warning.category is RuntimeWarning]


def test_a_pixel_that_is_no_number_stops_the_command_with_the_remedy(tmp_path, recwarn):
    write_folder(tmp_path / 'in')
    path = tmp_path / 'in/train/2.npy'
    array = np.load(path)
    array[5, 5, 2] = np.nan
    np.save(path, array)
    options = dict(channels=5, workers=1, short_side=16, log=lambda text: None)
    with pytest.raises(UserError, match=r'train/2\.npy.*nan.*--nodata=nan'):
        prepare(str(tmp_path / 'in'), str(tmp_path / 'out'), **options)
    for _ in range(2):
        prepare(str(tmp_path / 'in'), str(tmp_path / 'other'), nodata=np.nan, **options)
    assert not [warning for warning in recwarn if warning.category is RuntimeWarning]


def test_bands_are_chosen_of_a_prepared_data_set(tmp_path):
    write_folder(tmp_path / 'in', 'u2')
    options = dict(channels=5, workers=1, short_side=64, log=lambda text: None)
    prepare(str(tmp_path / 'in'), str(tmp_path / 'out'), **options)
    source = make_source('prepared', 'train', path=str(tmp_path / 'out'), channels=None)
    expected = np.load(tmp_path / 'in/train/0.npy')[..., [3, 2, 1]]
    np.testing.assert_array_equal(decode(source[0], 3, bands=(3, 2, 1)), expected)
    with pytest.raises(BadImage, match='dataset.bands'):
        decode(source[0], 3)


def test_what_was_read_is_printed(tmp_path, capsys):
    for name in ('a/1', 'a/2', 'b/3', 'b/4'):
        (tmp_path / 'in' / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(tmp_path / 'in' / f'{name}.png')
    prepare(str(tmp_path / 'in'), str(tmp_path / 'out'), workers=1)
    assert 'train: 4 images, 2 classes, 2 held out (no val/)' in capsys.readouterr().out
