"""The segmentation task as a config makes it: what learns, how fast, and mistakes in fields."""

import functools
import types

import jax
import numpy as np
import pytest
from flax import traverse_util

from configs import segment, segment_ade20k_base, segment_ade20k_large
from mae_jax.config.model import make_segmenter
from mae_jax.errors import UserError
from mae_jax.tasks import make_task
from mae_jax.training.optimizer import decays_finetune

CLASSES = 5
SIZES = {
    'image_size': (16, 16),
    'model.variant': 'vit_tiny',
    'model.patch_size': 4,
    'model.width': 16,
    'model.depth': 2,
    'model.heads': 2,
    'model.dtype': 'float32',
    'dataset.channels': 3,
    'dataset.scale': 255.0,
    'dataset.mean': (0.5, 0.5, 0.5),
    'dataset.std': (0.5, 0.5, 0.5),
}
SOURCE = types.SimpleNamespace(num_classes=CLASSES, class_names=list('abcde'))


def make_config(head: str = 'upernet', **fields):
    config = segment.get_config(head)
    config.update_from_flattened_dict(SIZES | fields)
    return config


def task_of(head: str = 'upernet', **fields):
    return make_task(make_config(head, **fields), SOURCE)


NORMS = {f'norm{n}/{name}' for n in (1, 2) for name in ('scale', 'bias')}
PRODUCTS = {
    f'{layer}/{name}'
    for layer in ('attention/qkv', 'attention/proj', 'mlp/fc1', 'mlp/fc2')
    for name in ('kernel', 'bias')
}
BLOCK = NORMS | PRODUCTS | {'attention/relative_table', 'attention_scale', 'mlp_scale'}
PYRAMID = {
    f'head/pyramid/{name}'
    for name in (
        'quadruple_1/kernel',
        'quadruple_1/bias',
        'quadruple_norm/scale',
        'quadruple_norm/bias',
        'quadruple_2/kernel',
        'quadruple_2/bias',
        'double/kernel',
        'double/bias',
    )
}
CONVOLUTIONS = {
    f'{block}/{name}'
    for block in (
        *(f'head/pooling_{bins}' for bins in (1, 2, 3, 6)),
        *(f'head/{kind}_{level}' for kind in ('lateral', 'fpn') for level in (0, 1, 2)),
        'head/bottleneck',
        'head/fpn_bottleneck',
        'auxiliary/conv_0',
    )
    for name in ('conv/kernel', 'norm/scale', 'norm/bias')
}
CLASSIFIERS = {
    f'{head}/classifier/{n}' for head in ('head', 'auxiliary') for n in ('kernel', 'bias')
}
EMBEDDINGS = {'encoder/patch_embed/kernel', 'encoder/patch_embed/bias', 'encoder/cls_token',
              'encoder/pos_embed'}  # fmt: skip
HEADS = PYRAMID | CONVOLUTIONS | CLASSIFIERS
BLOCKS = [{f'encoder/blocks/block_{k}/{name}' for name in BLOCK} for k in (0, 1)]
OPTIONS = {'model.relative_positions': 'beit', 'model.layer_scale': 1.0}


@functools.cache
def parameters() -> dict[str, jax.ShapeDtypeStruct]:
    """Of the paper's model, made tiny."""
    params, _ = jax.eval_shape(task_of(**OPTIONS).init, jax.random.key(0))
    return traverse_util.flatten_dict(params, sep='/')


def test_the_layer_decay_of_every_parameter():
    """0.65 a layer: embeddings, two blocks, then heads and pyramid at the full rate."""
    expected = {name: 0.65**3 for name in EMBEDDINGS}
    expected |= {name: 0.65**2 for name in BLOCKS[0]} | {name: 0.65 for name in BLOCKS[1]}
    expected |= {name: 1.0 for name in HEADS}
    config = make_config(**OPTIONS)
    config.optimizer.update(name='adamw', weight_decay=0.0)
    assert config.optimizer.layer_decay == 0.65
    optimizer = make_task(config, SOURCE).make_optimizer(config.optimizer, lambda step: 1.0)
    params = {name: np.zeros(1, np.float32) for name in parameters()}
    params = traverse_util.unflatten_dict(params, sep='/')
    gradient = jax.tree.map(np.ones_like, params)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    # Adam's first step is the learning rate itself.
    actual = {k: -float(v[0]) for k, v in traverse_util.flatten_dict(updates, sep='/').items()}
    assert actual.keys() == expected.keys()
    for name, scale in expected.items():
        assert actual[name] == pytest.approx(scale, rel=1e-4), name


def test_what_decays_are_kernels_and_tables():
    params = traverse_util.unflatten_dict(parameters(), sep='/')
    decayed = {
        n for n, d in traverse_util.flatten_dict(decays_finetune(params), sep='/').items() if d
    }
    tables = {f'encoder/blocks/block_{k}/attention/relative_table' for k in (0, 1)}
    assert decayed == {name for name in parameters() if name.endswith('/kernel')} | tables


LEARNING = {
    'all': EMBEDDINGS | BLOCKS[0] | BLOCKS[1] | HEADS,
    '1': BLOCKS[1] | HEADS,
    '0.5': {name for name in BLOCKS[1] if '/mlp/' in name} | HEADS,
    '0': HEADS,
    'head': HEADS,
}


@pytest.mark.parametrize('trained', LEARNING)
def test_what_learns(trained):
    task = task_of(**OPTIONS, trained=trained)
    assert {name for name in parameters() if task.is_trained(name)} == LEARNING[trained]
    frozen = {'all': 0, '1': 1, '0.5': 1}.get(trained, 2)
    assert task.model.encoder.frozen_blocks == frozen


def test_a_linear_head_sees_the_last_block_after_the_final_norm():
    params, state = jax.eval_shape(task_of('linear').init, jax.random.key(0))
    names = traverse_util.flatten_dict(params, sep='/').keys()
    assert {n for n in names if n.startswith('head/')} == {
        'head/classifier/kernel',
        'head/classifier/bias',
    }
    assert 'encoder/norm/scale' in names and 'auxiliary' not in params
    assert jax.tree.map(lambda x: x.shape, state) == {
        'batch_stats': {'head': {'norm': {'mean': (16,), 'var': (16,)}}}
    }
    params, _ = jax.eval_shape(task_of('linear', **{'model.taps': (0, -1)}).init, jax.random.key(0))
    assert params['head']['classifier']['kernel'].shape == (32, CLASSES)


@pytest.mark.parametrize(
    ('depth', 'taps'), [(4, (0, 1, 2, 3)), (12, (3, 5, 7, 11)), (24, (7, 11, 15, 23))]
)
def test_taps_follow_from_the_depth(depth, taps):
    config = make_config(**{'model.depth': depth})
    assert make_segmenter(config, CLASSES).taps == taps
    config.model.head = 'linear'
    assert make_segmenter(config, CLASSES).taps == (depth - 1,)


def test_the_recipes_are_those_of_the_paper():
    for recipe, taps, width in (
        (segment_ade20k_base, (3, 5, 7, 11), 768),
        (segment_ade20k_large, (7, 11, 15, 23), 1024),
    ):
        config = recipe.get_config()
        config.model.dtype = 'float32'
        model = make_segmenter(config, 150)
        assert (model.taps, model.head.width, model.head.dropout) == (taps, width, 0.1)
        assert (model.auxiliary.width, model.auxiliary.tap) == (256, 2)
        assert not model.final_norm
        options = model.encoder.options
        assert (options.relative_positions, options.layer_scale) == ('beit', 1.0)


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'model.taps': (0, 1, 1, 7)}, r'model.taps=\(0, 1, 1, 7\): .* no block 7, .* 0 to 1'),
        ({'model.taps': (0, 1)}, r'model.taps=\(0, 1\) must be 4 blocks'),
        ({'model.head': 'fpn'}, r"model.head='fpn' .*linear \| upernet"),
        ({'image_size': (4, 16)}, r'image_size=\(4, 16\) has 1 x 4 patches'),
        ({'model.auxiliary_tap': 4}, 'model.auxiliary_tap=4 must be from 0 to 3'),
        ({'model.auxiliary_weight': -0.4}, r'model.auxiliary_weight=-0.4'),
        ({'model.head_dropout': 1.0}, 'model.head_dropout=1.0 must be at least 0 and below 1'),
        ({'model.drop_path': 1.5}, 'model.drop_path=1.5 must be at least 0 and below 1'),
        ({'model.head_width': 0}, 'model.head_width=0 must be at least 1'),
        ({'optimizer.accumulate': 2}, 'optimizer.accumulate=1'),
        ({'optimizer.layer_decay': 0.0}, 'optimizer.layer_decay=0.0 must be above 0'),
        ({'stride': 17}, 'stride=17 must be from 1 to 16'),
        ({'trained': '3'}, 'trained=3 blocks, but the model has 2'),
    ],
)
def test_mistakes_in_fields_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        task_of(**fields)


def test_data_without_masks_are_refused():
    source = types.SimpleNamespace(num_classes=0, class_names=[])
    with pytest.raises(UserError, match='has no masks'):
        make_task(make_config(), source)
