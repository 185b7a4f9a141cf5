"""The distances of bfloat16 from float32 are those computed by hand, of steps that agree."""

import bfloat16_losses
import numpy as np
import precision
import pytest
from PIL import Image

GRADIENT = {'a': np.array([3.0, 0.0]), 'b': np.array([[4.0]])}
STEP = precision.Step(np.array([1.0, 2.0, 2.0]), GRADIENT)


def apart(prediction=0.0, gradient=0.0):
    moved = GRADIENT | {'b': GRADIENT['b'] + gradient}
    return precision.Step(STEP.prediction + np.array([0, 0, prediction]), moved)


def test_distances_are_relative_and_over_all_parameters_together():
    assert precision.distances(STEP, apart(0.3, 0.5)) == pytest.approx((0.1, 0.1))
    assert precision.distances(STEP, STEP) == (0.0, 0.0)


def small():
    config = precision.make_config('vit_tiny', 32)
    config.model.update(width=24, depth=2, decoder_width=24, decoder_depth=1, decoder_heads=3)
    return config


def test_weights_have_no_zeros_and_ones_left_and_are_the_same_for_a_seed():
    one, again = (precision.make_params(small(), seed=3) for _ in range(2))
    block = one['encoder']['blocks']['block_1']
    assert np.unique(block['attention']['qkv']['bias']).size > 50
    assert 0.05 < np.std(block['norm1']['scale']) < 0.15
    np.testing.assert_array_equal(
        block['mlp']['fc1']['kernel'],
        again['encoder']['blocks']['block_1']['mlp']['fc1']['kernel'],
    )


def test_libraries_that_differ_in_float32_are_not_compared_in_bfloat16(monkeypatch):
    monkeypatch.setattr(
        precision, 'make_params', lambda *_: {'encoder': {'pos_embed': np.ones((1, 5, 1))}}
    )
    monkeypatch.setattr(precision, 'run_ours', lambda *_: STEP)
    monkeypatch.setattr(precision, 'run_theirs', lambda *_: (apart(prediction=0.01), STEP))
    with pytest.raises(ValueError, match='differ in float32'):
        list(precision.compare(small(), 1, 0, ['eager'], []))


def test_each_contender_is_compared_with_itself_in_float32(monkeypatch):
    params = {'encoder': {'pos_embed': np.ones((1, 5, 1))}}
    theirs = apart(prediction=1e-5)
    half = precision.Step(theirs.prediction * 1.5, theirs.gradient)
    monkeypatch.setattr(precision, 'make_params', lambda *_: params)
    monkeypatch.setattr(
        precision,
        'run_ours',
        lambda config, *_: STEP if config.model.dtype == 'float32' else apart(gradient=1.0),
    )
    monkeypatch.setattr(precision, 'run_theirs', lambda *_: (theirs, half))
    rows = dict(precision.compare(small(), 1, 0, ['eager'], ['float32']))
    assert rows['Hugging Face, eager'] == pytest.approx((0.5, 0.0))
    assert rows['ours, float32 stream'] == pytest.approx((0.0, 0.2))


@pytest.mark.slow
def test_the_losses_of_a_deep_model_fall_and_are_printed(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for i in range(4):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8)).save(tmp_path / f'{i}.png')
    monkeypatch.setattr(bfloat16_losses, 'CHUNK', 20)
    arguments = f'--images={tmp_path} --image_size=16 --width=12 --steps=40 --learning_rate=3e-3'
    monkeypatch.setattr('sys.argv', ['bfloat16_losses', *arguments.split()])
    bfloat16_losses.main()
    lines = capsys.readouterr().out.splitlines()
    first, last = (np.array(line.split()[1:], float) for line in lines[:2])
    assert first.shape == (3,)
    assert (last < first).all()
    np.testing.assert_allclose(last, last[0], rtol=0.05)
