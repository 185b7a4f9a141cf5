from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.jaxprs import multiplications
from helpers.slow import slow_after

from mae_jax.errors import UserError
from mae_jax.models.transformer import Transformer
from mae_jax.models.vit import Encoder, architecture


def test_a_variant_is_what_the_paper_says_and_each_number_can_be_given():
    assert architecture('vit_huge') == dict(width=1280, depth=32, heads=16, patch_size=14)
    given = architecture('vit_base', depth=3, patch_size=8)
    assert given == dict(width=768, depth=3, heads=12, patch_size=8)


@pytest.mark.parametrize(
    'variant, given, message',
    [
        ('vit_giant', {}, r"model\.variant='vit_giant'.*vit_tiny \| vit_small"),
        ('vit_base', {'width': 100}, r'model\.width=100'),
        ('vit_base', {'width': 6, 'heads': 3}, r'model\.width=6'),
        ('vit_base', {'heads': 0}, r'model\.heads=0'),
    ],
)
def test_an_impossible_architecture_is_refused(variant, given, message):
    with pytest.raises(UserError, match=message):
        architecture(variant, **given)


def test_an_unknown_remat_is_refused():
    with pytest.raises(UserError, match=r"model\.remat='all'.*none \| block \| dots"):
        Transformer(1, 2, remat='all').init(jax.random.key(0), jnp.zeros((1, 2, 8)))


@cache
def tiny():
    encoder = Encoder(patch_size=2, width=12, depth=1, heads=3)
    images = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    return encoder, images, jax.jit(encoder.init)(jax.random.key(0), images)


def test_an_unknown_attention_is_refused():
    module = Transformer(1, 2, attention='flash')
    with pytest.raises(UserError, match=r"model\.attention='flash'"):
        module.init(jax.random.key(0), jnp.zeros((1, 2, 8)))


CUDNN = pytest.param(
    'cudnn',
    False,
    marks=pytest.mark.skipif(jax.default_backend() != 'gpu', reason='is plain attention elsewhere'),
)


@pytest.mark.parametrize(('attention', 'scan'), [('xla', False), ('xla', True), CUDNN])
def test_attention_of_any_kind_gives_the_same_tokens_and_gradients(attention, scan):
    """On a GPU to the precision of bfloat16, which its kernel takes."""
    encoder, images, params = tiny()
    tolerance = 1e-4
    if attention == 'cudnn':
        encoder, tolerance = encoder.clone(heads=1, width=16, dtype=jnp.bfloat16), 0.1
        params = encoder.init(jax.random.key(0), images)

    def total(params, module):
        return jnp.sum(module.apply(params, images) ** 3)

    others = encoder, encoder.clone(attention=attention, scan=scan)
    expected, actual = (
        jax.jit(jax.value_and_grad(total), static_argnums=1)(params, m) for m in others
    )
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance * np.abs(a).max())


def test_kept_patches_are_encoded_as_if_the_image_had_no_others():
    """Hidden patches have no influence, whatever their pixels."""
    encoder, images, variables = tiny()
    encode = jax.jit(encoder.apply)
    ids_keep = np.array([[5, 0, 1], [2, 3, 0]])
    tokens = encode(variables, images, ids_keep)
    assert tokens.shape == (2, 4, 12)
    scribbled = images.copy()
    scribbled[0, 2:, :4] = 7  # patches 3 and 4, hidden in the first example
    np.testing.assert_array_equal(encode(variables, scribbled, ids_keep), tokens)


def test_all_patches_kept_in_order_is_the_whole_image():
    encoder, images, variables = tiny()
    encode = jax.jit(encoder.apply)
    whole = encode(variables, images)
    ids = np.tile(np.arange(6), (2, 1))
    np.testing.assert_allclose(encode(variables, images, ids), whole, atol=1e-6)


def test_without_the_final_norm_tokens_are_raw():
    encoder, images, variables = tiny()
    raw = np.asarray(jax.jit(partial(encoder.apply, final_norm=False))(variables, images))
    normed = jax.jit(encoder.apply)(variables, images)
    mean, variance = raw.mean(-1, keepdims=True), raw.var(-1, keepdims=True)
    np.testing.assert_allclose(normed, (raw - mean) / np.sqrt(variance + 1e-6), atol=1e-5)


def test_layer_norm_statistics_survive_a_large_mean():
    """A float32 one-pass variance, E[x^2] - E[x]^2, would be off by a factor."""
    encoder = Encoder(2, 12, 0, 3)
    images = jnp.zeros((1, 4, 4, 1))
    params = encoder.init(jax.random.key(0), images)['params']
    values = np.linspace(-1, 1, 12).astype(np.float32)
    params['patch_embed']['bias'] = jnp.asarray(3000 + values)
    params['pos_embed'] = jnp.zeros_like(params['pos_embed'])
    tokens = encoder.apply({'params': params}, images)[0, 1]
    np.testing.assert_allclose(tokens, values / values.std(), atol=2e-3)


def test_work_grows_with_the_visible_patches_alone():
    encoder = Encoder(16, 32, 1, 4)  # large patches, whose projection is visible in the count
    images = jax.ShapeDtypeStruct((2, 128, 128, 3), jnp.float32)
    variables = jax.eval_shape(encoder.init, jax.random.key(0), images)

    def flops(kept: int) -> float:
        ids_keep = jax.ShapeDtypeStruct((2, kept), jnp.int32)
        compiled = jax.jit(encoder.apply).lower(variables, images, ids_keep).compile()
        return compiled.cost_analysis()['flops']

    quarter, half = flops(16), flops(32)
    assert 0.4 < quarter / half < 0.55


def test_initialisation_is_that_of_the_original():
    encoder = Encoder(4, 192, 1, 3)
    params = jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))['params']
    block = params['blocks']['block_0']

    def xavier(kernel):
        bound = np.sqrt(6 / sum(kernel.shape))
        assert 0.97 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose(np.std(kernel), bound / np.sqrt(3), rtol=0.03)

    assert params['patch_embed']['kernel'].shape == (48, 192)
    assert block['attention']['qkv']['kernel'].shape == (192, 576)
    kernels = [params['patch_embed'], *block['attention'].values(), *block['mlp'].values()]
    for dense in kernels:
        xavier(dense['kernel'])
    for dense in kernels[1:]:
        assert not dense['bias'].any()
    bias, bound = np.asarray(params['patch_embed']['bias']), 48**-0.5
    assert 0.9 * bound < np.abs(bias).max() <= bound
    assert bias.min() < 0 < bias.max()
    np.testing.assert_allclose(np.std(params['cls_token']), 0.02, rtol=0.2)
    for norm in (block['norm1'], block['norm2'], params['norm']):
        assert (norm['scale'] == 1).all() and not norm['bias'].any()


@cache
def three_blocks():
    """(parameters of three blocks, tokens)."""
    tokens = np.random.default_rng(0).normal(size=(2, 8, 16)).astype(np.float32)
    return jax.jit(Transformer(3, 2).init)(jax.random.key(0), tokens)['params'], tokens


SWITCHES = [{}, {'scan': True}, {'remat': 'block'}, {'scan': True, 'remat': 'dots'}]


@pytest.mark.parametrize('options', slow_after(1, SWITCHES))
def test_each_branch_is_scaled_for_each_example(options):
    """As if the example had a model of its own, whose branches end in scaled weights."""
    params, tokens = three_blocks()
    scale = np.random.default_rng(1).uniform(0, 2, size=(2, 3, 2)).astype(np.float32)
    scale[0, 1, 0] = scale[1, 2, 1] = 0
    model = Transformer(3, 2, frozen_blocks=1, **options)
    scaled = jax.jit(model.apply)({'params': params}, tokens, scale)
    plain = jax.jit(Transformer(3, 2).apply)
    for example, row in enumerate(scale):
        own = jax.tree.map(np.array, params)
        for i in range(3):
            block = own[f'block_{i}']
            for branch, last in enumerate((block['attention']['proj'], block['mlp']['fc2'])):
                last |= {name: value * row[i, branch] for name, value in last.items()}
        expected = plain({'params': own}, tokens)[example]
        np.testing.assert_allclose(scaled[example], expected, atol=1e-5)


@pytest.mark.parametrize('stream', [jnp.float32, jnp.bfloat16])
def test_branches_are_scaled_in_the_dtype_of_the_stream(stream):
    params, tokens = three_blocks()
    model = Transformer(3, 2, dtype=jnp.bfloat16, residual_dtype=stream, scan=True)
    out = jax.eval_shape(model.apply, {'params': params}, tokens, jnp.ones((2, 3, 2)))
    assert out.dtype == stream


@cache
def output_and_gradients(**options):
    """(tokens, gradient of the parameters, gradient of the tokens that went in)."""

    def loss(params, tokens):
        out = Transformer(3, 2, **options).apply({'params': params}, tokens)
        return jnp.square(out).sum(), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(*three_blocks())
    return out, *gradients


@pytest.mark.parametrize('options', slow_after(1, SWITCHES))
def test_frozen_blocks_run_but_take_no_gradient(options):
    out, params, tokens = output_and_gradients(frozen_blocks=2, **options)
    expected_out, expected, _ = output_and_gradients()
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    close(out, expected_out)
    jax.tree.map(close, params['block_2'], expected['block_2'])
    frozen = tokens, params['block_0'], params['block_1']
    assert not any(leaf.any() for leaf in jax.tree.leaves(frozen))


@pytest.mark.parametrize('options', slow_after(1, SWITCHES))
def test_frozen_blocks_cost_nothing_backward(options):
    """Neither products nor memory, even for whoever asks for the gradient of all parameters."""

    def backward(frozen: int) -> np.ndarray:
        """(multiplications of the backward pass, numbers kept for it)."""
        params, tokens = three_blocks()
        model = Transformer(3, 2, frozen_blocks=frozen, **options)

        def loss(params):
            return jnp.square(model.apply({'params': params}, tokens)).sum()

        pullback = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
        jaxpr = jax.make_jaxpr(lambda pullback: pullback(1.0))(pullback)
        return np.array(
            [multiplications(jaxpr.jaxpr), sum(x.size for x in jax.tree.leaves(pullback))]
        )

    np.testing.assert_allclose(backward(2) / backward(0), 1 / 3, atol=0.03)
    assert backward(3)[0] == 0


def test_compiled_work_falls_with_the_frozen_blocks():
    params, tokens = three_blocks()

    def flops(frozen: int) -> float:
        def loss(params):
            out = Transformer(3, 2, frozen_blocks=frozen).apply({'params': params}, tokens)
            return jnp.square(out).sum()

        return jax.jit(jax.grad(loss)).lower(params).compile().cost_analysis()['flops']

    # A backward pass is two forward ones: 3 + 2 blocks' worth of 3 + 6, as products go.
    assert flops(2) < 0.65 * flops(0)


def test_more_frozen_blocks_than_there_are_is_refused():
    with pytest.raises(UserError, match='4 of 3 blocks'):
        Transformer(3, 2, frozen_blocks=4).init(jax.random.key(0), jnp.zeros((1, 2, 8)))
