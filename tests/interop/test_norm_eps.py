"""The epsilon of the norms: that of the source is kept, run and checked against its own files."""

import json
import os

import jax
import numpy as np
import pytest
import vitmae
from helpers.models import make_mae

import mae_jax
from mae_jax.errors import UserError
from mae_jax.interop import detect
from mae_jax.interop.read import read_config
from mae_jax.models.classifier import Classifier

GOLDEN = np.load(os.path.join(os.path.dirname(vitmae.__file__), 'norm_eps.npz'))
CASE = vitmae.NORM_EPS


@pytest.fixture
def with_eps(hub):
    """The golden weights as a directory of Hugging Face whose layer_norm_eps is the case's."""
    return set_eps(hub, CASE.norm_eps)


def set_eps(hub, eps):
    path = hub / 'config.json'
    content = json.loads(path.read_text()) | {'layer_norm_eps': eps}
    path.write_text(json.dumps({name: x for name, x in content.items() if x is not None}))
    return hub


def prediction(path):
    module, params = mae_jax.load(path)
    images, noise = vitmae.inputs(CASE)
    return module.apply({'params': params}, images, noise=noise).prediction


def test_a_model_computes_what_hugging_face_does_with_its_epsilon(with_eps):
    np.testing.assert_allclose(prediction(with_eps), GOLDEN['prediction'], atol=1e-5)
    other = prediction(set_eps(with_eps, 1e-6))
    assert np.abs(other - GOLDEN['prediction']).max() > 1e-3  # the golden numbers depend on it


def test_a_conversion_there_and_back_keeps_it(run, with_eps, tmp_path):
    path = with_eps
    for name in ('ours.safetensors', 'hub_of_ours'):
        status, output = run('convert', path, tmp_path / name, '--no_run')
        assert status == 0, output
        path = tmp_path / name
        np.testing.assert_allclose(prediction(path), GOLDEN['prediction'], atol=1e-5)
    assert json.loads((path / 'config.json').read_text())['layer_norm_eps'] == CASE.norm_eps


@pytest.mark.parametrize('suffix', ['.safetensors', '.npz'])
def test_a_format_that_implies_another_epsilon_is_refused(run, with_eps, tmp_path, suffix):
    to = 'official' if suffix == '.safetensors' else 'augreg'
    arguments = ('convert', with_eps, tmp_path / f'x{suffix}', '--to', to, '--encoder_only')
    status, output = run(*arguments, '--no_run')
    assert status == 1 and 'norm_eps=0.01' in output and '--norm_eps 1e-06' in output
    assert run(*arguments, '--no_run', '--norm_eps', '1e-6')[0] == 0


@pytest.mark.parametrize(
    ('content', 'eps'),
    [({}, 1e-6), ({'layer_norm_eps': 1e-5}, 1e-5), ({'layer_norm_eps': None}, 1e-12)],
)
def test_what_a_config_lacks_is_the_default_of_transformers(hub, content, eps):
    for value in content.values():
        set_eps(hub, value)
    assert read_config(hub).model.norm_eps == eps


def test_weights_without_a_config_assume_that_default_and_say_so(run, hub, tmp_path):
    (hub / 'config.json').unlink()
    arguments = ('convert', hub, tmp_path / 'x.safetensors', '--heads', 3, '--decoder_heads', 2)
    status, output = run(*arguments, '--no_run')
    assert status == 0 and 'norm_eps=1e-12' in output, output


@pytest.mark.parametrize('eps', ['small', -1e-6, 0, 2.0])
def test_an_impossible_epsilon_is_refused(hub, eps):
    with pytest.raises(UserError, match='norm_eps='):
        mae_jax.load_encoder(set_eps(hub, eps))


def test_the_check_runs_the_epsilon_of_the_source(run, with_eps, tmp_path, monkeypatch):
    pytest.importorskip('torch')
    pytest.importorskip('transformers')
    status, output = run('convert', with_eps, tmp_path / 'x.safetensors')
    assert status == 0 and 'as read: compared with transformers' in output, output
    read = detect.detect_config

    def misread(foreign, given):
        config, assumed = read(foreign, given)
        config.model.norm_eps = 1e-6
        return config, assumed

    monkeypatch.setattr('mae_jax.interop.translate.detect_config', misread)
    status, output = run('convert', with_eps, tmp_path / 'y.safetensors')
    assert status == 1 and 'differ from those of transformers' in output, output


def test_the_norm_after_mean_pooling_has_it_too():
    sizes = dict(patch_size=4, width=16, depth=1, heads=2, num_classes=3)
    module = Classifier(**sizes, norm_eps=0.5)
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    params = module.init(jax.random.key(0), images)['params']
    features = module.apply({'params': params}, images, method='features')

    def tokens(module):
        return module.encoder(images, final_norm=False)

    pooled = np.asarray(module.apply({'params': params}, method=tokens))[:, 1:].mean(axis=1)
    centred = pooled - pooled.mean(axis=1, keepdims=True)
    expected = centred / np.sqrt(pooled.var(axis=1, keepdims=True) + 0.5)
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_scanned_blocks_have_it_too():
    images, noise = vitmae.inputs(CASE)
    params = vitmae.to_tree(CASE, vitmae.weights(CASE))
    names = ('patch_size', 'width', 'depth', 'heads', 'decoder_width', 'decoder_depth')
    sizes = {name: getattr(CASE, name) for name in (*names, 'decoder_heads', 'norm_eps')}
    model = make_mae(**sizes, scan=True)
    output = model.apply({'params': params}, images, noise=noise)
    np.testing.assert_allclose(output.prediction, GOLDEN['prediction'], atol=1e-5)
