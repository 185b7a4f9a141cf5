"""Encoders with windows, whose blocks do not all have the same shapes: stored and loaded again."""

import numpy as np
import pytest
import vitdet
from helpers.commands import ROOT
from ml_collections import ConfigDict

import mae_jax
from mae_jax.interop.trained import Trained, write_trained
from mae_jax.models.positions import resize_positions
from mae_jax.models.relative import resize_offsets

MODEL = {
    'variant': 'vit_tiny',
    'patch_size': vitdet.PATCH_SIZE,
    'width': vitdet.WIDTH,
    'depth': vitdet.DEPTH,
    'heads': vitdet.HEADS,
    'dtype': 'float32',
    'relative_positions': 'vitdet',
    'cls_token': False,
    'window': vitdet.WINDOW,
    'global_blocks': vitdet.GLOBAL,
}


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
    """A file with the golden weights of transformers' ViTDet, for its grid."""
    config = ConfigDict(
        {
            'image_size': tuple(side * vitdet.PATCH_SIZE for side in vitdet.GRID),
            'model': MODEL,
            'dataset': dict(path=None, channels=3, scale=255.0, mean=(0.5,) * 3, std=(0.5,) * 3),
        }
    )
    params = vitdet.to_tree(vitdet.weights())
    params['pos_embed'] = resize_positions(params['pos_embed'], vitdet.PRETRAINED, vitdet.GRID)
    path = tmp_path_factory.mktemp('vitdet') / 'vitdet.safetensors'
    write_trained(path, Trained({'encoder': params}, {}, None, config))
    return path


def test_a_loaded_encoder_computes_what_transformers_does(stored):
    encoder, params = mae_jax.load_encoder(stored)
    images = vitdet.images('square')
    maps = encoder.apply({'params': params}, images, method='features', output='map')
    with np.load(ROOT / 'tests/golden/vitdet.npz') as golden:
        np.testing.assert_allclose(maps, golden['square'], atol=2e-5)


def test_for_another_size_only_blocks_without_windows_are_resized(stored):
    encoder, params = mae_jax.load_encoder(stored, image_size=(24, 36))
    before = vitdet.to_tree(vitdet.weights())['blocks']
    for number in range(vitdet.DEPTH):
        block = f'block_{number}'
        expected = before[block]['attention']['rel_pos_w']
        if number in vitdet.GLOBAL:
            expected = resize_offsets(expected, 9)
        np.testing.assert_array_equal(params['blocks'][block]['attention']['rel_pos_w'], expected)
    maps = encoder.apply({'params': params}, vitdet.images('wide'), method='features', output='map')
    assert maps.shape == (2, 6, 9, vitdet.WIDTH)
