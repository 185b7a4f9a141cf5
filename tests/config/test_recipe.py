"""What a config leaves unset is chosen from the data, by the documented rule."""

import math

import pytest

from configs import (
    detect,
    finetune,
    finetune_large,
    folder,
    linprobe,
    partial,
    segment,
    vit_base,
)
from mae_jax.config.recipe import choose, explain, keep, rule_of, unset_fields

IMAGENET = 1_281_167


def chosen(config, examples, devices=1, width=128, **fields):
    config.update_from_flattened_dict(fields)
    return choose(config, examples=examples, width=width, devices=devices)


def steps(config, examples):
    return config.num_epochs * examples / config.batch_size


@pytest.mark.parametrize('make', [detect, finetune, folder, linprobe, partial, segment])
@pytest.mark.parametrize('examples', [3, 60, 600, 9469, 50_000, IMAGENET])
def test_everything_is_chosen_and_every_run_is_sound(make, examples):
    config = chosen(make.get_config(), examples)
    assert unset_fields(make.get_config()) and not unset_fields(config)
    assert 1 <= config.batch_size <= examples
    assert math.log2(config.batch_size) % 1 == 0
    assert steps(config, examples) >= 190
    assert 0 < config.optimizer.warmup_epochs <= 0.101 * config.num_epochs


def test_at_imagenets_size_the_rule_is_the_papers_recipe():
    ours, paper = chosen(finetune.get_config(), IMAGENET), finetune_large.get_config()
    for config in (ours, paper):
        config.optimizer.base_lr = round(config.optimizer.base_lr, 9)
    for field in ('batch_size', 'num_epochs'):
        assert ours[field] == paper[field]
    for field in ('base_lr', 'warmup_epochs'):
        assert ours.optimizer[field] == pytest.approx(paper.optimizer[field])
    for group in ('mix', 'model', 'dataset'):
        for field in ('mixup', 'cutmix', 'drop_path', 'augment', 'erase', 'crop_scale'):
            assert ours[group].get(field) == paper[group].get(field)
    ours, paper = chosen(folder.get_config(), IMAGENET, width=768), vit_base.get_config()
    assert ours.batch_size == paper.batch_size
    assert ours.optimizer.base_lr == pytest.approx(paper.optimizer.base_lr)


def test_at_the_size_of_ade20k_segmentation_trains_as_long_as_the_paper():
    config = chosen(segment.get_config(), 20_210)
    assert config.batch_size == 16
    assert steps(config, 20_210) == pytest.approx(160_000, rel=0.01)
    assert config.optimizer.base_lr * 16 / 256 == pytest.approx(1e-4)
    small = chosen(segment.get_config('linear'), 367)
    assert 1000 < steps(small, 367) < 4000
    assert small.optimizer.base_lr * 16 / 256 == pytest.approx(1e-3)  # nothing to forget


def test_the_learning_rate_follows_the_root_of_the_batch():
    rates = {}
    for batch in (64, 256):
        config = chosen(finetune.get_config(), 10_000, batch_size=batch)
        rates[batch] = config.optimizer.base_lr * batch / 256
    assert rates[256] == pytest.approx(2 * rates[64])


@pytest.mark.parametrize(
    ('fields', 'devices', 'multiple'),
    [
        ({}, 8, 8),
        ({}, 6, 6),
        ({'optimizer.accumulate': 4}, 8, 32),
        ({'dataset.repeats': 3, 'optimizer.accumulate': 2}, 4, 24),
        ({}, 48, 48),
    ],
)
def test_a_batch_can_be_split_over_the_devices(fields, devices, multiple):
    config = chosen(folder.get_config(), 600, devices, **fields)
    assert config.batch_size % multiple == 0
    assert config.batch_size < 64 + multiple


def test_what_the_user_gives_stays_and_the_rest_follows_from_it():
    given = {'batch_size': 20, 'num_epochs': 7.0, 'optimizer.base_lr': 0.5}
    config = chosen(linprobe.get_config(), 600, **given, cache_features=False)
    assert (config.batch_size, config.num_epochs, config.optimizer.base_lr) == (20, 7.0, 0.5)
    assert config.cache_features is False
    assert config.optimizer.warmup_epochs == pytest.approx(0.7)
    config = chosen(finetune.get_config(), 640, batch_size=64, num_steps=50)
    assert config.num_epochs is None
    assert config.optimizer.warmup_epochs == pytest.approx(0.5)  # a tenth of five epochs
    assert unset_fields(config) == []


def test_few_images_are_augmented_lightly_unless_the_user_has_it_otherwise():
    config = chosen(finetune.get_config(), 600, **{'mix.cutmix': 0.5})
    assert (config.mix.mixup, config.mix.cutmix, config.dataset.augment) == (0, 0.5, '')
    assert config.dataset.crop_scale == (0.35, 1.0)
    assert chosen(finetune.get_config(), 100_000).mix.mixup == 0.8
    assert chosen(linprobe.get_config(), 600).dataset.crop_scale == (0.08, 1.0)


def test_lars_has_one_rate_for_every_batch():
    for batch in (32, 1024):
        fields = {'optimizer.name': 'lars', 'batch_size': batch}
        config = chosen(linprobe.get_config(), 9000, **fields)
        assert config.optimizer.base_lr * batch / 256 == pytest.approx(6.4)
        assert config.optimizer.weight_decay == 0


def test_a_probe_of_few_images_is_held_back_and_that_of_imagenet_is_not():
    decays = [chosen(linprobe.get_config(), n).optimizer.weight_decay for n in (60, 1000, IMAGENET)]
    assert decays == [1.0, 0.1, pytest.approx(0, abs=1e-4)]


def test_features_are_not_cached_where_they_cannot_be():
    assert chosen(linprobe.get_config(), 600).cache_features is True
    assert chosen(linprobe.get_config(), 600, **{'dataset.repeats': 2}).cache_features is False


@pytest.mark.parametrize('examples', [300, 9469, 100_000])
def test_a_laptop_sees_as_many_images_of_any_data_set(examples):
    config = chosen(folder.get_config('laptop'), examples)
    assert config.num_epochs * examples == pytest.approx(120_000)
    assert chosen(folder.get_config('laptop'), 10).num_epochs == 1600


def test_fewer_images_are_seen_more_often():
    epochs = [rule_of('pretrain', n).epochs for n in (100, 10_000, 40_000, 10_000_000)]
    assert epochs == [1600, 400, 200, 100]
    assert rule_of('finetune', 60).epochs_of(16) == 200
    assert rule_of('finetune', 600).epochs_of(128) == 200
    assert rule_of('finetune', 9469).epochs_of(64) == 50


def test_a_run_that_has_begun_keeps_what_it_has():
    begun = chosen(finetune.get_config(), 600)
    begun.model.dtype = 'float32'
    config = finetune.get_config()
    config.num_epochs = 3.0
    keep(config, begun)
    assert config.batch_size == begun.batch_size
    assert config.optimizer.base_lr == begun.optimizer.base_lr
    assert config.num_epochs == 3.0
    assert config.model.dtype == 'float32'


def test_a_run_of_an_earlier_version_keeps_the_epochs_that_its_steps_override():
    begun = finetune_large.get_config()
    config = finetune.get_config()
    begun.num_steps = config.num_steps = 10
    keep(config, begun)
    assert config.num_epochs == begun.num_epochs == 50


def test_the_line_names_what_was_chosen_and_from_what():
    config = finetune.get_config()
    config.optimizer.base_lr = 1e-3
    fields = unset_fields(config)
    config = chosen(config, 600)
    line = explain(fields, config, 1875, 600, 10)
    assert line == 'batch 16, 1,875 steps, light augmentation: 600 images, 10 classes'
    assert explain([], config, 1875, 600, 10) == ''
    config = linprobe.get_config()
    fields = unset_fields(config)
    line = explain(fields, chosen(config, 1_281_167), 25_024, 1_281_167, 1000)
    assert line.endswith('lr 1.0e-02, adamw, cached features: 1,281,167 images, 1,000 classes')
    assert len(line) <= 100
