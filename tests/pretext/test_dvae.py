import jax
import make_dvae
import numpy as np
import pytest

from mae_jax.pretext.dvae import DVAE, map_pixels, parameter_shapes


def logits(images, **sizes):
    params = make_dvae.to_tree(make_dvae.weights(**sizes))
    return jax.jit(DVAE(**sizes).apply)({'params': params}, images)


def test_logits_are_those_of_the_published_module():
    golden = np.load(make_dvae.GOLDEN)['logits']
    actual = logits(make_dvae.images(1, 16, 24), **make_dvae.SMALL)
    assert actual.shape == golden.shape == (1, 2, 3, 512)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, golden, atol=1e-4)


@pytest.mark.slow
def test_the_whole_model_agrees_with_the_published_module():
    """On 112 pixels a side, as for 14 x 14 patches; the golden numbers are of a smaller model."""
    pytest.importorskip('torch')
    pytest.importorskip('dall_e')
    sizes = dict(codes=8192, width=256, blocks=2)
    images = make_dvae.images(1, 112, 112)
    expected = make_dvae.published_logits(make_dvae.published(**sizes), images)
    actual = logits(images, **sizes)
    assert actual.shape == (1, 14, 14, 8192)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_defaults_are_the_published_sizes():
    shapes = parameter_shapes(DVAE())
    assert shapes['input/kernel'] == (7, 7, 3, 256)
    assert shapes['group_4_block_2/conv_4/kernel'] == (1, 1, 512, 2048)
    assert shapes['output/kernel'] == (1, 1, 2048, 8192)
    assert not any(name.startswith('group_1_block_3') for name in shapes)


def test_pixels_are_mapped_into_the_middle_of_their_range():
    np.testing.assert_allclose(map_pixels(np.array([0, 0.5, 1])), [0.1, 0.5, 0.9])
