"""Fields of segmentation: the recipe of ADE20K, and what sizes and windows follow from fields."""

import functools
import json

import pytest

from configs import segment, segment_ade20k_base, segment_ade20k_large
from mae_jax.config.changes import changed_fields
from mae_jax.config.fields import apply_overrides
from mae_jax.config.length import make_learning_rate, make_length
from mae_jax.config.pairs import short_and_long, window_stride
from mae_jax.config.saved import from_json, to_json
from mae_jax.errors import UserError
from mae_jax.experiment.inherit import inherit

# The paper's code for ViT-B on ADE20K, as mmsegmentation has it.
ADE20K = {
    'batch_size': 16,
    'num_steps': 160_000,
    'image_size': (512, 512),
    'num_classes': 150,
    'trained': 'all',
    'inference': 'slide',
    'model.head': 'upernet',
    'model.relative_positions': 'beit',
    'model.layer_scale': 1.0,
    'model.drop_path': 0.1,
    'model.head_dropout': 0.1,
    'model.auxiliary_weight': 0.4,
    'model.auxiliary_width': 256,
    'model.auxiliary_tap': 2,
    'dataset.name': 'paired_folders',
    'dataset.reduce_zero_label': True,
    'dataset.ignored': (255,),
    'dataset.short_side': 512,
    'dataset.long_side': 2048,
    'dataset.resize_ratio': (0.5, 2.0),
    'dataset.max_class_share': 0.75,
    'dataset.flip': True,
    'dataset.augment': 'photometric',
    'dataset.scale': 255.0,
    'dataset.mean': (0.485, 0.456, 0.406),
    'dataset.std': (0.229, 0.224, 0.225),
    'optimizer.name': 'adamw',
    'optimizer.b1': 0.9,
    'optimizer.b2': 0.999,
    'optimizer.weight_decay': 0.05,
    'optimizer.layer_decay': 0.65,
    'optimizer.schedule': 'linear',
    'optimizer.min_lr': 0.0,
}
LARGE = ADE20K | {
    'model.drop_path': 0.2,
    'optimizer.layer_decay': 0.8,
}


@pytest.mark.parametrize(
    ('recipe', 'expected', 'peak'),
    [(segment_ade20k_base, ADE20K, 1e-4), (segment_ade20k_large, LARGE, 9e-5)],
    ids=['base', 'large'],
)
def test_recipes_of_ade20k_are_the_published_ones(recipe, expected, peak):
    config = recipe.get_config()
    actual = {name: functools.reduce(getattr, name.split('.'), config) for name in expected}
    assert actual == expected
    length = make_length(config, 20_210)
    assert (length.num_steps, length.warmup_steps) == (160_000, 1500)
    rate = make_learning_rate(config, length)
    for step, share in {0: 0, 750: 0.5, 1500: 1, 80_750: 0.5, 160_000: 0}.items():
        assert float(rate(step)) == pytest.approx(share * peak, rel=1e-5)
    assert short_and_long(config) == (512, 2048)
    assert window_stride(config) == (341, 341)


def small(*overrides):
    config = segment.get_config()
    config.image_size = (96, 128)
    apply_overrides(config, overrides)
    return config


def test_sides_and_stride_follow_from_the_size_of_the_model():
    assert short_and_long(small()) == (96, 384)
    assert short_and_long(small('dataset.short_side=120')) == (120, 480)
    assert short_and_long(small('dataset.long_side=200')) == (96, 200)
    assert window_stride(small()) == (64, 85)
    assert window_stride(small('stride=96')) == (96, 96)
    with pytest.raises(UserError, match='stride=97 must be from 1 to 96'):
        window_stride(small('stride=97'))


def test_values_that_are_ignored_can_be_given_on_the_command_line():
    for text, values in {'11': (11,), '11,255': (11, 255), '()': ()}.items():
        ignored = small(f'dataset.ignored={text}').dataset.ignored
        assert tuple(ignored) == values, text


def test_model_and_statistics_come_from_the_pretrained_model_and_data_do_not(pretrained, tmp_path):
    config = segment.get_config()
    config.init_from = str(pretrained[0])
    config.dataset.path = '~/pairs'
    config.dataset.classes = '~/classes.txt'
    config = inherit(config, tmp_path)
    source = from_json((pretrained[0] / 'config.json').read_text())
    assert config.model.width == source.model.width
    assert config.image_size == source.image_size
    assert config.dataset.mean == source.dataset.mean
    assert config.dataset.name == 'paired_folders'
    assert '~' not in config.dataset.path + config.dataset.classes
    again = from_json(to_json(config))
    assert not changed_fields(config, again)


def test_a_run_of_an_earlier_version_had_a_cosine():
    config = segment.get_config()
    config.optimizer.schedule = 'cosine'
    fields = json.loads(to_json(config))
    del fields['optimizer']['schedule']
    assert not changed_fields(from_json(json.dumps(fields)), config)
