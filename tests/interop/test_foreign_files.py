"""Models from real files of other libraries have the outputs of the library's own model."""

import numpy as np
import pytest

import mae_jax
from mae_jax.interop.check import run_ours
from mae_jax.interop.convert import convert
from mae_jax.interop.trained import read_trained

foreign = pytest.importorskip('helpers.foreign_checkpoints')

FILES = {
    'official_full': (foreign.official_full, {}, 'prediction'),
    'official_training': (foreign.official_full, {'training': True}, 'prediction'),
    'official_encoder': (foreign.official_encoder, {}, 'tokens'),
    'official_finetuned': (foreign.official_finetuned, {}, 'logits'),
    'official_probe': (foreign.official_probe, {}, 'logits'),
    'timm': (foreign.timm_vit, {}, 'logits'),
    'timm_pth': (foreign.timm_vit, {'suffix': '.pth'}, 'logits'),
    'deit': (foreign.deit, {}, 'logits'),
    'moco_v3': (foreign.moco_v3, {'heads': 3}, 'tokens'),
    'dino_backbone': (foreign.dino_backbone, {}, 'tokens'),
    'dino_full': (foreign.dino_full, {}, 'tokens'),
    'huggingface_mae': (foreign.huggingface_mae, {}, 'prediction'),
    'huggingface_mae_hub': (foreign.huggingface_mae, {'spelling': 'hub'}, 'prediction'),
    'huggingface_mae_module': (foreign.huggingface_mae, {'spelling': 'module'}, 'prediction'),
    'huggingface_mae_pixel': (foreign.huggingface_mae, {'normalized': False}, 'prediction'),
    'huggingface_classifier': (foreign.huggingface_vit, {}, 'logits'),
    'huggingface_encoder': (foreign.huggingface_vit, {'kind': 'encoder'}, 'tokens'),
    'huggingface_pooler': (foreign.huggingface_vit, {'kind': 'pooler'}, 'tokens'),
    'beit': (foreign.beit, {}, 'logits'),
    'beit_pretrained': (foreign.beit, {'shared': True}, 'tokens'),
    'huggingface_beit': (foreign.huggingface_beit, {}, 'logits'),
    'huggingface_beit_module': (foreign.huggingface_beit, {'spelling': 'module'}, 'logits'),
    'huggingface_beit_pretrained': (foreign.huggingface_beit, {'kind': 'pretrained'}, 'tokens'),
    'huggingface_beit_encoder': (foreign.huggingface_beit, {'kind': 'encoder'}, 'tokens'),
    'augreg': (foreign.augreg, {}, 'logits'),
    'big_vision': (foreign.big_vision, {}, 'logits'),
}
NARROW = {'decoder_heads': 16}
"""The default exists only for a width of 512, that of the official decoder."""
BASE = ('official_full', 'official_finetuned', 'huggingface_mae', 'beit', 'huggingface_beit')


def outputs_agree(ours, theirs):
    """Asserts equality to 1e-5 of the largest output, the rounding of float32 in twelve blocks."""
    assert np.abs(ours - theirs).max() <= 1e-5 * max(np.abs(theirs).max(), 1)


@pytest.mark.parametrize('name', FILES)
def test_a_converted_model_computes_what_its_own_library_does(name, tmp_path):
    make, options, output = FILES[name]
    check_conversion(*make(tmp_path, **options), output, foreign.TINY, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('name', BASE)
def test_a_converted_base_model_does_too(name, tmp_path):
    make, options, output = FILES[name]
    path, oracle = make(tmp_path, size=foreign.BASE, **options)
    check_conversion(path, oracle, output, foreign.BASE, tmp_path)


def check_conversion(path, oracle, output, size, folder):
    given = {} if size is foreign.BASE else NARROW
    convert(path, folder / 'ours.safetensors', run=False, given=given, say=lambda line: None)
    images, noise = foreign.inputs(size)
    theirs = oracle(images, noise) if output == 'prediction' else oracle(images)
    ours = run_ours(read_trained(folder / 'ours.safetensors'), images.transpose(0, 2, 3, 1), noise)
    assert ours.shape == theirs[output].shape
    outputs_agree(ours, theirs[output])


@pytest.mark.parametrize('normalized', [True, False])
def test_loss_is_that_of_hugging_face_so_the_target_is_too(normalized, tmp_path):
    path, oracle = foreign.huggingface_mae(tmp_path, normalized=normalized)
    convert(path, tmp_path / 'ours.safetensors', run=False, say=lambda line: None)
    images, noise = foreign.inputs()
    module, params = mae_jax.load(tmp_path / 'ours.safetensors')
    ours = module.apply({'params': params}, images.transpose(0, 2, 3, 1), noise=noise)
    theirs = oracle(images, noise)
    assert float(ours.loss) == pytest.approx(float(theirs['loss']), rel=1e-5)
    assert np.array_equal(np.asarray(ours.mask), theirs['mask'].astype(bool))


def test_a_training_checkpoint_states_its_target_and_mask_ratio(tmp_path):
    log = []
    path, _ = foreign.official_full(tmp_path, training=True)
    convert(path, tmp_path / 'ours.safetensors', run=False, given=NARROW, say=log.append)
    assert not any('mask_ratio' in line or 'target' in line for line in log)
    path, _ = foreign.official_full(tmp_path)
    convert(path, tmp_path / 'more.safetensors', run=False, given=NARROW, say=log.append)
    assert any('mask_ratio=0.75' in line and 'target=normalized_pixel' in line for line in log)


def test_moco_small_has_twelve_heads_by_its_kind(tmp_path):
    size = foreign.TINY._replace(width=384)
    path, oracle = foreign.moco_v3(tmp_path, size)
    check_conversion(path, oracle, 'tokens', size, tmp_path)


@pytest.mark.parametrize(
    'name',
    [
        'official_full',
        'official_finetuned',
        'timm',
        'augreg',
        'beit',
        'beit_pretrained',
        'huggingface_beit',
        'huggingface_beit_pretrained',
    ],
)
def test_the_command_runs_a_batch_where_the_library_is_installed(name, tmp_path):
    make, options, _ = FILES[name]
    log = []
    path, _ = make(tmp_path, **options)
    convert(path, tmp_path / 'ours.safetensors', given=NARROW, say=log.append)
    assert any('largest difference' in line for line in log)


@pytest.mark.parametrize(
    ('name', 'to'),
    [
        ('official_full', 'model.pth'),
        ('official_full', 'hub'),
        ('official_finetuned', 'model.pth'),
        ('official_probe', 'model.pth'),
        ('huggingface_classifier', 'hub'),
        ('huggingface_encoder', 'hub'),
        ('augreg', 'model.npz'),
        ('beit', 'model.pth'),
        ('beit', 'hub'),
        ('beit_pretrained', 'model.pth'),
        ('beit_pretrained', 'hub'),
    ],
)
def test_what_is_written_for_another_library_runs_there(name, to, tmp_path):
    make, options, output = FILES[name]
    log = []
    path, _ = make(tmp_path, **options)
    convert(path, tmp_path / 'ours.safetensors', run=False, given=NARROW, say=log.append)
    convert(tmp_path / 'ours.safetensors', tmp_path / to, say=log.append)
    assert any('as written' in line and 'largest difference' in line for line in log)


def test_hugging_face_opens_what_is_exported(tmp_path):
    import torch
    from transformers import ViTMAEForPreTraining

    path, oracle = foreign.huggingface_mae(tmp_path)
    convert(path, tmp_path / 'ours.safetensors', run=False, say=lambda line: None)
    convert(tmp_path / 'ours.safetensors', tmp_path / 'hub', run=False, say=lambda line: None)
    model, report = ViTMAEForPreTraining.from_pretrained(tmp_path / 'hub', output_loading_info=True)
    assert not any(report[problem] for problem in ('missing_keys', 'unexpected_keys'))
    images, noise = foreign.inputs()
    with torch.no_grad():
        again = model.eval()(torch.from_numpy(images), noise=torch.from_numpy(noise))
    assert np.array_equal(again.logits.numpy(), oracle(images, noise)['prediction'])


@pytest.mark.parametrize('blocks', [(0, 1), (-1,), (1, 0)])
def test_features_after_a_block_are_timms(blocks, tmp_path):
    import torch

    path, _ = foreign.official_encoder(tmp_path)
    convert(path, tmp_path / 'ours.safetensors', run=False, say=lambda line: None)
    encoder, params = mae_jax.load_encoder(tmp_path / 'ours.safetensors')
    model = foreign.models.vision_transformer(foreign.TINY)
    model.load_state_dict(torch.load(path)['model'])
    images, _ = foreign.inputs()
    indices = sorted(b % 2 for b in blocks)
    with torch.no_grad():
        theirs = model.eval().forward_intermediates(
            torch.from_numpy(images), indices, norm=True, intermediates_only=True
        )
    by_block = {i: x.numpy().transpose(0, 2, 3, 1) for i, x in zip(indices, theirs, strict=True)}
    ours = encoder.apply(
        {'params': params},
        images.transpose(0, 2, 3, 1),
        method='features',
        output='map',
        blocks=blocks,
    )
    for block, actual in zip(blocks, ours, strict=True):
        outputs_agree(np.asarray(actual), by_block[block % 2])
