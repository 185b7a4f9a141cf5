"""Loads trained models in Python: from a run, from one of its checkpoints, from one file."""

import functools
import os

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import safetensors.numpy
import vit
import vitmae
from helpers.tiny_runs import flat
from ml_collections import ConfigDict

import mae_jax
from mae_jax.errors import UserError
from mae_jax.interop.convert import convert
from mae_jax.interop.load import adapt_channels
from mae_jax.interop.trained import Trained, write_trained
from mae_jax.models.classifier import Classifier
from mae_jax.models.mae import MAE

GOLDEN = np.load(os.path.join(os.path.dirname(vitmae.__file__), 'vitmae.npz'))
GOLDEN_VIT = np.load(os.path.join(os.path.dirname(vit.__file__), 'vit.npz'))


def make_config(case, **model):
    """Makes the config of a golden case."""
    return ConfigDict(
        {
            'image_size': case.image_size,
            'init_from': None,
            'model': dict(
                variant='vit_tiny',
                patch_size=case.patch_size,
                width=case.width,
                depth=case.depth,
                heads=case.heads,
                decoder_width=case.decoder_width,
                decoder_depth=case.decoder_depth,
                decoder_heads=case.decoder_heads,
                dtype='bfloat16',
                remat='block',
                scan=True,
                **model,
            ),
            'mask': {'ratio': case.mask_ratio, 'strategy': 'random'},
            'target': {'name': 'normalized_pixel' if case.normalized else 'pixel'},
            'dataset': {
                'path': None,
                'channels': case.channels,
                'scale': 255.0,
                'mean': (0.5,) * case.channels,
                'std': (0.25,) * case.channels,
            },
        }
    )


@pytest.fixture
def write(tmp_path):
    """Writes the golden autoencoder of a case to a file: write(case) -> its path."""

    def write(case, keep=('encoder', 'decoder')):
        params = vitmae.to_tree(case, vitmae.weights(case))
        path = tmp_path / 'model.safetensors'
        params = {name: params[name] for name in keep}
        write_trained(path, Trained(params, {}, 7, make_config(case)))
        return path

    return write


@pytest.mark.slow
def test_a_file_gives_the_autoencoder_that_hugging_face_computes(write):
    name = 'wide_rgb_normalized'
    case = vitmae.CASES[name]
    module, params = mae_jax.load(write(case))
    images, noise = vitmae.inputs(case)
    output = module.apply({'params': params}, images, noise=noise)
    assert isinstance(module, MAE)
    np.testing.assert_allclose(output.prediction, GOLDEN[f'{name}/prediction'], atol=1e-5)
    assert float(output.loss) == pytest.approx(float(GOLDEN[f'{name}/loss']), rel=1e-5)


def test_a_run_its_checkpoint_and_its_export_give_the_same(pretrained, tmp_path):
    workdir, state = pretrained
    path = tmp_path / 'model.safetensors'
    convert(workdir, path, say=lambda line: None)
    expected = flat(state.params)
    for source in (workdir, str(workdir), workdir / 'checkpoints' / '4', path):
        module, params = mae_jax.load(source)
        assert isinstance(module, MAE) and module.depth == 2
        loaded = flat(params)
        assert loaded.keys() == expected.keys()
        assert all(np.array_equal(loaded[name], expected[name]) for name in expected)
        encoder, params = mae_jax.load_encoder(source)
        assert all(np.array_equal(x, expected[f'encoder/{n}']) for n, x in flat(params).items())
        assert encoder.depth == 2


def test_an_encoder_alone_says_that_it_has_no_decoder(write):
    path = write(vitmae.CASES['square_rgb_pixel'], keep=('encoder',))
    with pytest.raises(UserError, match='has no decoder.*load_encoder'):
        mae_jax.load(path)
    mae_jax.load_encoder(path)


def test_a_classifier_gives_its_logits_with_averaged_weights(fine_tuned):
    workdir, state, _ = fine_tuned
    module, params = mae_jax.load(workdir)
    assert isinstance(module, Classifier)
    assert np.array_equal(params['head']['kernel'], state.ema['head']['kernel'])
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    logits = jax.eval_shape(module.apply, {'params': params}, images)
    assert logits.shape == (1, 10)


def test_running_statistics_are_folded_into_the_head(tmp_path):
    weights = vit.weights('cls')
    case = vitmae.Case((224, 224), 3, 16, 0.75, False, 0, vit.BATCH_SIZE, 48, 12, 3)
    config = make_config(case, pool='cls', batch_norm=True, head_std=1.0, drop_path=0.0)
    mean, var = np.linspace(-1, 1, 48), np.linspace(0.1, 2, 48)
    statistics = {'mean': mean.astype(np.float32), 'var': var.astype(np.float32)}
    trained = Trained(
        vit.to_tree(weights), {'batch_stats': {'feature_norm': statistics}}, None, config
    )
    write_trained(tmp_path / 'probe.safetensors', trained)
    module, params = mae_jax.load(tmp_path / 'probe.safetensors')
    features = np.random.default_rng(0).normal(size=(4, 48)).astype(np.float32)
    logits = module.apply({'params': params}, features, False, method='classify')
    normalised = (features.astype(np.float64) - mean) / np.sqrt(var + 1e-6)
    expected = normalised @ weights['head.weight'].T + weights['head.bias']
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_features_come_in_every_form(write):
    case = vitmae.CASES['wide_rgb_normalized']  # 2 x 6 patches
    encoder, params = mae_jax.load_encoder(write(case))
    images, _ = vitmae.inputs(case)

    def features(**options):
        return encoder.apply({'params': params}, images, method='features', **options)

    @jax.jit
    def all_forms():
        return {
            'tokens': features(),
            'called': encoder.apply({'params': params}, images),
            'cls': features(output='cls'),
            'mean': features(output='mean'),
            'map': features(output='map'),
            'blocks': features(output='map', blocks=(0, -1, 1)),
        }

    forms = jax.tree.map(np.asarray, all_forms())
    tokens, maps = forms['tokens'], forms['map']
    assert tokens.shape == (3, 13, 12)
    assert np.array_equal(tokens, forms['called'])
    assert np.array_equal(forms['cls'], tokens[:, 0])
    np.testing.assert_allclose(forms['mean'], tokens[:, 1:].mean(axis=1), atol=1e-6)
    assert maps.shape == (3, 2, 6, 12)
    assert all(np.array_equal(maps[:, n // 6, n % 6], tokens[:, 1 + n]) for n in range(12))
    first, last, again = forms['blocks']
    assert np.array_equal(last, maps) and np.array_equal(again, maps)
    assert not np.allclose(first, maps)
    with pytest.raises(UserError, match='2 blocks'):
        features(blocks=(2,))
    with pytest.raises(UserError, match='map'):
        features(output='maps')


def test_scanned_blocks_give_the_same_features(write):
    case = vitmae.CASES['wide_rgb_normalized']
    encoder, params = mae_jax.load_encoder(write(case))
    images, _ = vitmae.inputs(case)

    @jax.jit
    def features():
        return [
            module.apply({'params': params}, images, method='features', blocks=(0, 1))
            for module in (encoder, encoder.clone(scan=True))
        ]

    for one, other in zip(*features(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_another_resolution_resizes_positions_as_pytorch_does(tmp_path):
    weights = vit.weights('mean')
    case = vitmae.Case((224, 224), 3, 16, 0.75, False, 0, vit.BATCH_SIZE, 48, 12, 3)
    config = make_config(case, pool='mean', batch_norm=False, head_std=1.0, drop_path=0.0)
    path = tmp_path / 'model.safetensors'
    write_trained(path, Trained(vit.to_tree(weights), {}, None, config))
    module, params = mae_jax.load(path)
    encoder, resized = mae_jax.load_encoder(path, image_size=16 * vit.RESIZED_GRID)
    assert not encoder.has_norm and 'norm' not in resized  # fine-tuned with mean pooling
    images = vit.images(vit.RESIZED_GRID)
    logits = jax.jit(module.apply)({'params': params | {'encoder': resized}}, images)
    np.testing.assert_allclose(logits, GOLDEN_VIT[f'mean/{vit.RESIZED_GRID}'], atol=1e-5)


@pytest.mark.parametrize('how', ['average', 'repeat'])
@pytest.mark.parametrize(('old', 'new'), [(3, 1), (3, 6), (1, 3), (1, 4)])
def test_equal_channels_give_the_same_as_before(how, old, new):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(16 * old, 5)).astype(np.float32)
    if how == 'repeat' and new % old:
        pytest.skip('holds where the numbers divide')
    adapted = adapt_channels(kernel, old, new, how)
    grey = rng.normal(size=(7, 16))
    before, after = (np.repeat(grey, count, axis=-1) for count in (old, new))  # channels last
    np.testing.assert_allclose(after @ adapted, before @ kernel, atol=1e-5)


def test_new_channels_are_the_mean_or_the_old_ones_in_turn():
    kernel = np.arange(2 * 3 * 1, dtype=np.float32).reshape(6, 1)  # two pixels of RGB
    average = adapt_channels(kernel, 3, 2, 'average')[:, 0]
    repeat = adapt_channels(kernel, 3, 4, 'repeat')[:, 0]
    np.testing.assert_allclose(average, np.array([1, 1, 4, 4]) * 3 / 2)
    np.testing.assert_allclose(repeat, np.array([0, 1, 2, 0, 3, 4, 5, 3]) * 3 / 4)


def test_other_channels_need_a_choice(write):
    path = write(vitmae.CASES['square_rgb_pixel'])
    with pytest.raises(UserError, match="4 channels.*trained on 3.*'average'"):
        mae_jax.load_encoder(path, channels=4)
    encoder, params = mae_jax.load_encoder(path, channels=4, new_channels='repeat', image_size=24)
    images = jax.ShapeDtypeStruct((1, 24, 24, 4), jnp.float32)
    tokens = jax.eval_shape(encoder.apply, {'params': params}, images)
    assert tokens.shape == (1, 37, 12)


def test_images_are_normalised_as_in_training(write):
    normalize = mae_jax.load_normalize(write(vitmae.CASES['square_rgb_pixel']))
    normalized = normalize(np.full((1, 2, 2, 3), 51, np.uint8))
    np.testing.assert_allclose(normalized, (51 / 255 - 0.5) / 0.25, rtol=1e-6)
    assert normalized.dtype == jnp.float32


def test_attention_weights_are_returned_on_request(write):
    case = vitmae.CASES['wide_rgb_normalized']
    encoder, params = mae_jax.load_encoder(write(case))
    images, _ = vitmae.inputs(case)
    apply = jax.jit(functools.partial(encoder.apply, mutable='intermediates'))
    _, kept = apply({'params': params}, images)
    weights = kept['intermediates']['blocks']['block_1']['attention']['weights'][0]
    assert weights.shape == (3, case.heads, 13, 13)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda t, m: t.pop('encoder/norm/bias'), 'encoder/norm/bias is missing'),
        (lambda t, m: t.update({'encoder/cls_token': t['encoder/cls_token'][..., :5]}), 'shape'),
        (lambda t, m: m.clear(), 'known format'),
        (lambda t, m: m.update(mae_jax='{"version": 1}'), 'damaged'),
        (lambda t, m: m.update(mae_jax='[' * 100_000), 'damaged'),
        (lambda t, m: m.update(mae_jax='{"version": 99}'), 'upgrade'),
        (lambda t, m: m.update(mae_jax='{"version": 1, "step": 0, "config": "{}"}'), 'damaged'),
        (lambda t, m: m.update(mae_jax=m['mae_jax'].replace('7', '"seven"')), 'damaged'),
        (lambda t, m: m.update(mae_jax=m['mae_jax'].replace('0.25', 'null')), 'std='),
        (lambda t, m: m.update(mae_jax=m['mae_jax'].replace('pixel', 'hog')), 'hog'),
        (lambda t, m: t.update(encoder=t['encoder/cls_token']), 'damaged'),
        (lambda t, m: t.update({'head/kernel': t['encoder/cls_token']}), 'head/kernel is unknown'),
        (lambda t, m: [t.pop(name) for name in list(t) if 'encoder' in name], 'damaged'),
    ],
)
def test_a_damaged_file_ends_in_a_sentence(write, damage, message):
    path = write(vitmae.CASES['square_rgb_pixel'])
    with safetensors.safe_open(path, 'numpy') as file:
        metadata = file.metadata()
    tensors = safetensors.numpy.load_file(path)
    damage(tensors, metadata)
    safetensors.numpy.save_file(tensors, path, metadata or None)
    with pytest.raises(UserError, match=message):
        mae_jax.load(path)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'image_size': 0}, 'image_size'),
        ({'image_size': (1, 2, 3)}, 'image_size'),
        ({'image_size': 10}, 'patches of 4'),
        ({'channels': 0}, 'at least 1'),
        ({'new_channels': 'avrage'}, 'avrage'),
        ({'dtype': 'float16'}, 'float16'),
    ],
)
def test_a_wrong_option_ends_in_a_sentence(write, options, message):
    with pytest.raises(UserError, match=message):
        mae_jax.load_encoder(write(vitmae.CASES['square_rgb_pixel']), **options)


def test_sizes_and_types_are_given_in_any_usual_way(write):
    path = write(vitmae.CASES['square_rgb_pixel'])
    for size in ((24,), (24, 24), np.int64(24), 24):
        assert mae_jax.load_encoder(path, image_size=size)[1]['pos_embed'].shape[1] == 37
    for dtype in (jnp.bfloat16, 'bfloat16'):
        assert mae_jax.load_encoder(path, dtype=dtype)[0].dtype == jnp.bfloat16


@pytest.fixture
def unchecked():
    """Turns the tests' own checks of signatures off, as for a user."""
    jaxtyping.config.update('jaxtyping_disable', True)
    yield
    jaxtyping.config.update('jaxtyping_disable', False)


@pytest.mark.usefixtures('unchecked')
@pytest.mark.parametrize(
    ('shape', 'options', 'message'),
    [
        ((1, 24, 24, 3), {}, r'image_size=\(24, 24\)'),
        ((1, 16, 16, 4), {}, 'channels=4'),
        ((1, 16, 16, 3), {'blocks': 1}, r'such as \(1,\)'),
    ],
)
def test_images_that_do_not_fit_say_how_to_load_for_them(write, shape, options, message):
    encoder, params = mae_jax.load_encoder(write(vitmae.CASES['square_rgb_pixel']))
    with pytest.raises(UserError, match=message):
        encoder.apply({'params': params}, jnp.zeros(shape), method='features', **options)


def test_a_path_without_a_model_ends_in_a_sentence(tmp_path):
    for name in ('nothing', 'nothing.safetensors'):
        with pytest.raises(UserError, match='neither a work directory'):
            mae_jax.load(tmp_path / name)
    (tmp_path / 'x.txt').write_bytes(b'')
    with pytest.raises(UserError, match=r'a name ends in \.pth'):
        mae_jax.load_encoder(tmp_path / 'x.txt')
