"""The model against Hugging Face's ViTMAE in PyTorch: `tests/golden/make_vitmae.py`."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vitmae
from helpers.commands import ROOT
from helpers.models import make_mae
from helpers.slow import slow_after

from mae_jax.errors import UserError
from mae_jax.models.mae import MAE, Decoder
from mae_jax.models.vit import architecture
from mae_jax.pretext.masking import MaskingRule
from mae_jax.pretext.targets import Pixel

GOLDEN = ROOT / 'tests/golden'


def build(case: vitmae.Case, **options) -> MAE:
    return make_mae(
        patch_size=case.patch_size,
        width=case.width,
        depth=case.depth,
        heads=case.heads,
        decoder_width=case.decoder_width,
        decoder_depth=case.decoder_depth,
        decoder_heads=case.decoder_heads,
        mask_ratio=case.mask_ratio,
        target='normalized_pixel' if case.normalized else 'pixel',
        **options,
    )


def loss_and_gradient(case: vitmae.Case, **options):
    """(loss, output, gradient by name) of the golden weights and inputs."""
    images, noise = vitmae.inputs(case)
    params = vitmae.to_tree(case, vitmae.weights(case))

    def loss_of(params):
        out = build(case, **options).apply({'params': params}, images, noise=noise)
        return out.loss, out

    (loss, out), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)
    return loss, out, vitmae.from_tree(case, gradient)


@cache
def ours(name: str):
    return loss_and_gradient(vitmae.CASES[name])


@cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / 'vitmae.npz') as arrays:
        return {k.removeprefix(f'{name}/'): arrays[k] for k in arrays if k.startswith(f'{name}/')}


QUICK = ('square_rgb_pixel', 'tall_gray_normalized')
cases = pytest.mark.parametrize(
    'name',
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in vitmae.CASES
    ],
)


@cases
def test_loss_prediction_and_mask_are_those_of_pytorch(name):
    loss, out, _ = ours(name)
    expected = golden(name)
    np.testing.assert_allclose(loss, expected['loss'], atol=1e-5)
    np.testing.assert_allclose(out.prediction, expected['prediction'], atol=1e-5)
    np.testing.assert_array_equal(out.mask, expected['mask'])


@cases
def test_the_gradient_of_every_tensor_is_that_of_pytorch(name):
    _, _, gradient = ours(name)
    expected = {k.removeprefix('grad/'): v for k, v in golden(name).items() if 'grad/' in k}
    assert gradient.keys() == expected.keys()
    for tensor, theirs in expected.items():
        if tensor.endswith('k_proj.bias'):  # zero in exact arithmetic: softmax ignores a shift
            assert np.abs(gradient[tensor]).max() < 1e-6, tensor
            continue
        norm = np.linalg.norm(theirs)
        assert norm > 1e-5, tensor
        assert np.linalg.norm(gradient[tensor] - theirs) < 1e-4 * norm, tensor


@cases
def test_golden_weights_fill_the_whole_tree(name):
    case = vitmae.CASES[name]
    images, _ = vitmae.inputs(case)
    expected = jax.eval_shape(build(case).init, jax.random.key(0), images)['params']
    tree = vitmae.to_tree(case, vitmae.weights(case))
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(lambda a: a.shape, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    'options',
    [
        dict(scan=True),
        dict(remat='block'),
        dict(scan=True, remat='dots'),
    ],
    ids=str,
)
def test_scan_and_remat_change_no_number_beyond_rounding(options):
    name = 'tall_gray_normalized'
    plain_loss, plain_out, plain_gradient = ours(name)
    loss, out, gradient = loss_and_gradient(vitmae.CASES[name], **options)
    np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)
    np.testing.assert_allclose(out.prediction, plain_out.prediction, atol=1e-5)
    for tensor, expected in plain_gradient.items():
        difference = np.linalg.norm(gradient[tensor] - expected)
        assert difference <= 1e-5 * np.linalg.norm(expected) + 1e-7, tensor


def test_scan_and_remat_leave_the_parameters_as_they_are():
    images = jnp.zeros((1, 4, 10, 1))
    case = vitmae.CASES['wide_gray_pixel']
    plain = jax.jit(build(case).init)(jax.random.key(0), images)
    switched = build(case, scan=True, remat='dots')
    other = jax.jit(switched.init)(jax.random.key(0), images)
    jax.tree.map(np.testing.assert_array_equal, plain, other)


def test_remat_saves_less():
    """The switch is real: fewer bytes wait for the backward pass."""
    case = vitmae.CASES['square_rgb_pixel']._replace(depth=6)
    images, noise = vitmae.inputs(case)
    params = vitmae.to_tree(case, vitmae.weights(case))

    def saved(**options) -> int:
        def loss(params):
            return build(case, **options).apply({'params': params}, images, noise=noise).loss

        residuals = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(residuals))

    none, dots, block = saved(), saved(remat='dots'), saved(remat='block')
    assert block < dots < none


@pytest.mark.slow
def test_bfloat16_keeps_parameters_and_loss_in_float32():
    name = 'wide_rgb_normalized'
    case = vitmae.CASES[name]
    images, _ = vitmae.inputs(case)
    params = jax.eval_shape(build(case, dtype=jnp.bfloat16).init, jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype('float32')}
    loss, out, gradient = loss_and_gradient(case, dtype=jnp.bfloat16)
    assert loss.dtype == out.prediction.dtype == jnp.float32
    assert {leaf.dtype for leaf in gradient.values()} == {np.dtype('float32')}
    np.testing.assert_allclose(loss, ours(name)[0], rtol=1e-2)
    assert loss != ours(name)[0]


def test_masks_come_from_the_mask_key_and_differ_from_step_to_step():
    case = vitmae.CASES['square_rgb_pixel']
    images, _ = vitmae.inputs(case)
    model = build(case)
    params = vitmae.to_tree(case, vitmae.weights(case))

    @jax.jit
    def mask(seed):
        rngs = {'mask': jax.random.key(seed)}
        return model.apply({'params': params}, images, rngs=rngs).mask

    a, b, again = mask(1), mask(2), mask(1)
    assert (a != b).any()
    np.testing.assert_array_equal(a, again)


@pytest.mark.parametrize(
    'variant, total, trainable',
    slow_after(
        1,
        [
            ('vit_base', 111_907_840, 111_655_680),
            ('vit_large', 329_541_888, 329_239_296),
            ('vit_huge', 657_074_508, 656_613_964),
        ],
    ),
)
def test_parameter_counts_are_the_official_ones(variant, total, trainable):
    model = make_mae(**architecture(variant))
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)['params']
    tables = sum(params[part]['pos_embed'].size for part in ('encoder', 'decoder'))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert (count, count - tables) == (total, trainable)


def test_the_mask_token_is_drawn_as_the_cls_token():
    decoder = Decoder(width=256, depth=0, heads=1)
    init = jax.jit(decoder.init, static_argnums=(3, 4))
    tokens, order = jnp.zeros((1, 2, 8)), (jnp.zeros((1, 1), int), jnp.zeros((1, 4), int))
    params = init(jax.random.key(0), tokens, order, (2, 2), 4)['params']
    np.testing.assert_allclose(np.std(params['mask_token']), 0.02, rtol=0.2)


@pytest.mark.parametrize(
    'field, value, message',
    [
        ('patch_size', 3, 'image_size'),
        ('masking', MaskingRule(0.99), r'mask\.ratio'),
        ('masking', MaskingRule(0.5, 'spiral'), r'mask\.strategy'),
        ('target', Pixel(loss_on='visible'), r'target\.loss_on'),
        ('heads', 5, r'model\.width'),
        ('decoder_heads', 3, r'model\.decoder_width'),
    ],
)
def test_what_does_not_work_is_refused_by_name(field, value, message):
    model = dataclasses.replace(build(vitmae.CASES['square_rgb_pixel']), **{field: value})
    with pytest.raises(UserError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((2, 16, 16, 3)))
