"""Runs whose targets are fitted or made by a tokenizer, and what comes of their models."""

import numpy as np
import pytest
from helpers.commands import make_tiny_config
from helpers.tiny_runs import PLAIN, classifying, flat, pretraining, start

import mae_jax
from configs import finetune
from mae_jax.config.data import make_sources, make_train_loader
from mae_jax.errors import UserError
from mae_jax.experiment.run import run
from mae_jax.interop.convert import convert
from mae_jax.pretext.dvae import DVAE, parameter_shapes
from mae_jax.pretext.tokenizers import save_dvae
from mae_jax.tasks import fit_target

PCA = {'target.name': 'pca', 'target.components': 3, 'target.sample': 100, 'num_steps': 2}
MASK_TOKENS = {'model.encoder_mask_tokens': True}


@pytest.fixture(scope='module')
def pca_run(run_once):
    """A finished run of PCA coefficients, with mask tokens in the encoder."""
    return run_once('pca', pretraining(**PCA, **MASK_TOKENS, image_every_steps=2))[:2]


@pytest.mark.slow
def test_the_basis_is_fitted_to_the_first_crops_of_the_run_and_kept_in_its_checkpoint(pca_run):
    workdir, state = pca_run
    config = pretraining(**PCA)
    source, _ = make_sources(config)
    loader = make_train_loader(config, source, np.arange(config.batch_size))
    crops = np.concatenate([loader.batch_at(step)['image'] for step in range(7)])[:100]
    pixels = (crops / 255.0 - 0.305) / 0.376
    patches = pixels.reshape(100, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, 4)
    _, _, rows = np.linalg.svd(patches - patches.mean(axis=0), full_matrices=False)
    for params in (state.params, mae_jax.load(workdir)[1]):
        np.testing.assert_allclose(params['pca']['mean'], patches.mean(axis=0), atol=1e-5)
        cosines = np.abs(np.sum(params['pca']['basis'] * rows[:3].T, axis=0))
        np.testing.assert_allclose(cosines, 1, atol=1e-4)
    assert (workdir / 'images' / 'latest.png').exists()


@pytest.mark.slow
def test_a_run_that_goes_on_keeps_the_basis_of_the_run_it_comes_from(pca_run, tmp_path):
    fields = PCA | MASK_TOKENS | {'seed': 5, 'init_from': str(pca_run[0])}
    basis = pca_run[1].params['pca']['basis']
    state = start(pretraining(**fields), tmp_path / 'started_from')
    np.testing.assert_array_equal(state.params['pca']['basis'], basis)
    fresh = start(pretraining(**fields | {'init_from': None}), tmp_path / 'fresh')
    assert (np.asarray(fresh.params['pca']['basis']) != basis).any()


@pytest.mark.slow
def test_the_same_command_again_takes_the_basis_from_the_checkpoint(pca_run, monkeypatch):
    monkeypatch.delattr(fit_target, '_fit_pca')
    state = start(pretraining(**PCA, **MASK_TOKENS), pca_run[0])
    basis = pca_run[1].params['pca']['basis']
    np.testing.assert_array_equal(state.params['pca']['basis'], basis)


@pytest.mark.slow
def test_another_target_than_that_of_init_from_is_reported(pca_run, tmp_path):
    fields = MASK_TOKENS | {'init_from': str(pca_run[0])}
    with pytest.raises(UserError, match=r'predicts another target\.name.*decoder/head/bias'):
        start(pretraining(**fields), tmp_path)


@pytest.mark.slow
def test_the_encoder_of_a_model_with_mask_tokens_is_one_like_others(pca_run, tmp_path):
    workdir, state = pca_run
    encoder, params = mae_jax.load_encoder(workdir)
    assert 'mask_token' in state.params['encoder'] and 'mask_token' not in params
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1))
    assert encoder.apply({'params': params}, images).shape == (2, 17, 16)
    fine_tuned = start(classifying(finetune.get_config, workdir, PLAIN), tmp_path / 'fine_tuned')
    ours, theirs = flat(fine_tuned.params['encoder']), flat(state.params['encoder'])
    assert theirs.keys() - ours.keys() == {'mask_token', 'norm/scale', 'norm/bias'}
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name])


@pytest.mark.slow
def test_only_the_encoder_has_a_place_in_other_libraries(pca_run, tmp_path):
    with pytest.raises(
        UserError, match=r"target\.name='pca': convert to 'mae_jax', or .*--encoder"
    ):
        convert(pca_run[0], tmp_path / 'official.pth', to='official', run=False)
    written = tmp_path / 'encoder.safetensors'
    convert(pca_run[0], written, to='official', encoder_only=True, run=False)
    assert written.exists()
    convert(pca_run[0], tmp_path / 'whole.safetensors', run=False)
    _, params = mae_jax.load(tmp_path / 'whole.safetensors')
    np.testing.assert_array_equal(params['pca']['basis'], pca_run[1].params['pca']['basis'])


def test_too_small_a_sample_is_refused(tmp_path):
    config = pretraining(**PCA | {'target.sample': 0})
    with pytest.raises(UserError, match=r'target\.sample=0 images .*take more'):
        start(config, tmp_path)


@pytest.mark.slow
def test_a_tokenizer_is_kept_in_the_state_and_is_no_part_of_the_model(tmp_path):
    dvae = DVAE(codes=8, width=4, blocks=1)
    rng = np.random.default_rng(0)
    tensors = {n: rng.normal(size=s).astype(np.float32) for n, s in parameter_shapes(dvae).items()}
    save_dvae(tmp_path / 'dvae.safetensors', dvae, tensors)
    config = make_tiny_config()
    token = {'name': 'token', 'tokenizer': str(tmp_path / 'dvae.safetensors'), 'codes': 8}
    config.target.update(token)
    config.dataset.update(name='synthetic', synthetic_examples=64, channels=3)
    config.dataset.update(mean=(0.5,) * 3, std=(0.25,) * 3)
    config.update(num_steps=2, image_every_steps=2)
    state = run(config, tmp_path / 'run')
    for name, value in flat(state.model_state['tokenizer']).items():
        np.testing.assert_array_equal(value, tensors[name])
    model, params = mae_jax.load(tmp_path / 'run')
    assert params.keys() == {'encoder', 'decoder'}
    assert params['decoder']['head']['kernel'].shape[1] == 8
    assert not (tmp_path / 'run' / 'images' / 'latest.png').exists()  # tokens are no pixels


def bright(images):
    """Ids 0 to 8 of patches of 2 x 2: white is 8."""
    batch, height, width, _ = images.shape
    cells = images.reshape(batch, height // 2, 2, width // 2, 2)
    return (cells.mean(axis=(2, 4)) * 8).astype(int)


@pytest.mark.slow
def test_ids_that_are_no_codes_are_reported_before_the_first_step(pca_run, tmp_path):
    token = {'target.name': 'token', 'target.tokenizer': f'{__name__}:bright'}
    start(pretraining(**token, **{'target.codes': 9}), tmp_path / 'run')
    with pytest.raises(UserError, match=r'ids from 0 to \d, and target\.codes=4 are 0 to 3'):
        start(pretraining(**token, **{'target.codes': 4}), tmp_path / 'other')
    # Nothing is kept of a function; a run may start from another's encoder and decoder.
    run(pretraining(**token, **{'target.codes': 9}, num_steps=1), tmp_path / 'run')
    fields = token | {'target.codes': 9, 'init_from': str(tmp_path / 'run')}
    assert start(pretraining(**fields), tmp_path / 'second').model_state == {}


def test_a_tokenizer_must_be_named(tmp_path):
    with pytest.raises(UserError, match=r'target\.tokenizer=None'):
        start(pretraining(**{'target.name': 'token'}), tmp_path)
