"""Arrays of pixels."""

import numpy as np
import pytest

from mae_jax.data.images.arrays import mirrored


@pytest.mark.parametrize('channels', [1, 3, 13])
@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_mirroring_exchanges_left_and_right_and_leaves_the_original(channels, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, channels)).astype(dtype)
    before = pixels.copy()
    copy = mirrored(pixels)
    copy[0, 0] = 99
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(copy[1:], np.flip(before, axis=1)[1:])
    assert copy.dtype == dtype and copy.flags.c_contiguous
