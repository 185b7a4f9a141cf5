"""Pyramid, UperNet and auxiliary head against transformers': `tests/golden/make_upernet.py`."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import upernet
from flax import traverse_util
from helpers.commands import ROOT
from helpers.slow import slow_after

from mae_jax.models.options import EncoderOptions
from mae_jax.models.segmentation.layers import resize
from mae_jax.models.segmentation.segmenter import Segmenter
from mae_jax.models.segmentation.upernet import FCNHead, UperHead
from mae_jax.models.vit import Encoder

CASE = upernet.SMALL
HEADS = ('head', 'auxiliary')
AUXILIARY_WEIGHT = 0.4


@functools.cache
def golden() -> dict[str, np.ndarray]:
    with np.load(ROOT / 'tests/golden/upernet.npz') as arrays:
        return dict(arrays)


@functools.cache
def variables() -> dict:
    """The golden weights as ours; those of the encoder too."""
    return upernet.to_tree(upernet.weights(json.loads(str(golden()['shapes']))))


def part(prefix: str) -> dict[str, np.ndarray]:
    """Golden numbers by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in golden().items() if k.startswith(prefix)}


def heads(**fields) -> dict:
    return {
        'head': UperHead(CASE.classes, CASE.head_width, **fields),
        'auxiliary': FCNHead(CASE.classes, CASE.auxiliary_width, **fields),
    }


def apply(name: str, params, maps, train: bool, **fields):
    """Enlarged logits of a head, and its running statistics afterwards."""
    of_head = {'params': params[name], 'batch_stats': variables()['batch_stats'][name]}
    logits, state = heads(**fields)[name].apply(of_head, maps, train, mutable='batch_stats')
    return resize(logits, (CASE.side, CASE.side)), state['batch_stats']


def close(actual, expected, share: float = 1e-5):
    """To a share of the largest number."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=share * np.abs(expected).max())


@pytest.mark.parametrize('name', HEADS)
def test_logits_of_four_maps_are_those_of_transformers(name):
    run = jax.jit(functools.partial(apply, name, train=False))
    logits, _ = run(variables()['params'], upernet.maps(CASE))
    close(logits[:, :: upernet.STRIDE, :: upernet.STRIDE], golden()[f'maps/{name}'])


@functools.cache
def trained():
    """Loss, gradient and statistics after one batch, in which ignored pixels do not count."""
    labels = upernet.labels(CASE)
    counted = labels != upernet.IGNORED

    def loss_of(params):
        losses, statistics = {}, {}
        for name in HEADS:
            logits, statistics[name] = apply(name, params, upernet.maps(CASE), True)
            log = jax.nn.log_softmax(logits)
            chosen = jnp.take_along_axis(log, np.where(counted, labels, 0)[..., None], axis=-1)
            losses[name] = -jnp.where(counted, chosen[..., 0], 0).sum() / counted.sum()
        return losses['head'] + AUXILIARY_WEIGHT * losses['auxiliary'], statistics

    params = {name: variables()['params'][name] for name in HEADS}
    (loss, statistics), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)
    return loss, traverse_util.flatten_dict(gradient, sep='/'), statistics


def test_loss_and_gradients_of_a_batch_are_those_of_pytorch():
    loss, gradient, _ = trained()
    assert float(loss) == pytest.approx(float(golden()['maps/loss']), rel=1e-5)
    expected = upernet.to_flat(part('gradient/'))
    assert len(expected) == len(upernet.GRADIENTS)
    for name, value in expected.items():
        close(gradient[name.removeprefix('params/')], value, share=1e-4)


def test_running_statistics_after_a_batch_are_those_of_pytorch():
    _, _, statistics = trained()
    actual = traverse_util.flatten_dict(statistics, sep='/')
    expected = upernet.to_flat(part('after/'))
    assert actual.keys() == {name.removeprefix('batch_stats/') for name in expected}
    for name, value in expected.items():
        close(actual[name.removeprefix('batch_stats/')], value)


@pytest.mark.parametrize('name', HEADS)
def test_in_bfloat16_logits_are_nearly_those_of_float32(name):
    params, maps = variables()['params'], upernet.maps(CASE)
    narrow, statistics = apply(name, params, maps, True, dtype=jnp.bfloat16)
    exact, _ = apply(name, params, maps, True)
    assert narrow.dtype == jnp.float32
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(statistics))
    difference = float(jnp.abs(narrow - exact).mean() / jnp.abs(exact).mean())
    assert 1e-4 < difference < 0.05


@pytest.mark.parametrize('name', HEADS)
def test_dropout_drops_whole_channels_before_the_classifier(name):
    """With a classifier that only sums, of channels that are all one."""
    head = heads(dropout=0.25)[name]
    width = head.width
    noise = np.tile(np.linspace(0, 1, width, endpoint=False, dtype=np.float32), (2, 1))
    params = jax.tree.map(np.zeros_like, variables()['params'][name])
    params['classifier']['kernel'] += 1
    last = params['fpn_bottleneck' if name == 'head' else 'conv_0']
    last['norm']['bias'] += 1  # the only part that does not multiply by zero
    of_head = {'params': params, 'batch_stats': variables()['batch_stats'][name]}
    maps = upernet.maps(CASE)
    logits = head.apply(of_head, maps, True, noise, mutable='batch_stats')[0]
    kept = (noise[0] >= 0.25).sum()
    assert kept < width
    np.testing.assert_allclose(logits, kept / 0.75, rtol=1e-6)
    assert (head.apply(of_head, maps) == width).all()


def segmenter(case: upernet.Case, **fields) -> Segmenter:
    """Over BEiT's encoder."""
    options = EncoderOptions('beit', layer_scale=0.1, key_bias=False, absolute_positions=False)
    encoder = Encoder(
        case.patch_size, case.width, case.depth, case.heads, options=options, **fields
    )
    head = UperHead(case.classes, case.head_width)
    return Segmenter(encoder, head, FCNHead(case.classes, case.auxiliary_width), case.taps)


def test_golden_weights_are_all_that_a_segmenter_has():
    images = np.zeros((1, CASE.side, CASE.side, 3), np.float32)
    expected = jax.eval_shape(segmenter(CASE).init, jax.random.key(0), images)
    shapes = jax.tree.map(lambda x: x.shape, (expected, variables()))
    assert traverse_util.flatten_dict(shapes[0]) == traverse_util.flatten_dict(shapes[1])


@pytest.mark.parametrize('scan', slow_after(1, [False, True]))
def test_logits_of_images_over_beit_are_those_of_transformers(scan):
    logits = jax.jit(segmenter(CASE, scan=scan).apply)(variables(), upernet.images(CASE))
    assert logits.head.shape == (2, CASE.side, CASE.side, CASE.classes)
    close(logits.head[:, :: upernet.STRIDE, :: upernet.STRIDE], golden()['logits'])


@pytest.mark.slow
@pytest.mark.parametrize('case', [upernet.BASE, upernet.LARGE], ids=['base', 'large'])
def test_logits_of_a_whole_model_are_those_of_transformers(case):
    """At 512 pixels, with random weights; to 1e-4 of the largest."""
    torch = pytest.importorskip('torch')
    pytest.importorskip('transformers')
    import make_upernet

    model, images = make_upernet.build(case, torch.float32), upernet.images(case, count=1)
    with torch.no_grad():
        expected = model(make_upernet.channels_first(images, torch.float32)).logits
    expected = expected.permute(0, 2, 3, 1).numpy()
    weights = upernet.to_tree(upernet.weights(make_upernet.shapes_of(model)))
    del model
    close(jax.jit(segmenter(case).apply)(weights, images).head, expected, share=1e-4)
