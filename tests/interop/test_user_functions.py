"""A model whose config names functions of its author's is loaded without importing them."""

import json
import sys

import jax
import numpy as np
import pytest

import mae_jax
from mae_jax.errors import UserError
from mae_jax.pretext.masking import STRATEGIES
from mae_jax.pretext.targets import TARGETS, Pixel


@pytest.fixture
def foreign(work_directory, tmp_path, monkeypatch):
    """A run with a mask strategy and a target in a module that records its import."""
    (tmp_path / 'theirs.py').write_text('raise SystemExit')
    monkeypatch.syspath_prepend(tmp_path)
    path = work_directory / 'config.json'
    config = json.loads(path.read_text())
    config['mask']['strategy'] = 'theirs:draw'
    config['target']['name'] = 'theirs:make'
    path.write_text(json.dumps(config))
    yield work_directory
    assert 'theirs' not in sys.modules


def test_its_encoder_is_loaded(foreign):
    encoder, params = mae_jax.load_encoder(foreign)
    images = np.zeros((1, 8, 8, 1), np.float32)
    assert np.isfinite(encoder.apply({'params': params}, images)).all()


def test_it_predicts_for_given_noise_and_has_no_loss(foreign):
    model, params = mae_jax.load(foreign)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    noise = np.random.default_rng(1).uniform(size=(2, 16))
    apply = jax.jit(model.apply)
    output = apply({'params': params}, images, noise)
    assert np.isfinite(output.prediction).all() and np.isnan(output.loss)
    with pytest.raises(UserError, match="mask.strategy='theirs:draw' is a mask strategy that is"):
        apply({'params': params}, images, rngs={'mask': jax.random.key(0)})
    with pytest.raises(UserError, match="target.name='theirs:make' was not imported"):
        model.apply({'params': params}, output.prediction, images, method='pixels')


def test_functions_that_were_registered_are_used(foreign, monkeypatch):
    monkeypatch.setitem(STRATEGIES._entries, 'theirs:draw', STRATEGIES.get('random'))
    monkeypatch.setitem(TARGETS._entries, 'theirs:make', Pixel.from_fields)
    model, params = mae_jax.load(foreign)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    rngs = {'mask': jax.random.key(0)}
    assert np.isfinite(jax.jit(model.apply)({'params': params}, images, rngs=rngs).loss)
