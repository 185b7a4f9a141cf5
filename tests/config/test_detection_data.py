"""Fields of detection: the recipe of COCO, and what the data and other runs give."""

import functools

import pytest

from configs import detect, detect_coco_base, detect_coco_huge, detect_coco_large
from mae_jax.config.changes import changed_fields
from mae_jax.config.detection_data import has_instances, padding
from mae_jax.config.fields import apply_overrides
from mae_jax.config.pairs import has_masks
from mae_jax.config.recipe import choose, unset_fields
from mae_jax.config.saved import from_json, to_json
from mae_jax.experiment.inherit import inherit

# detectron2's projects/ViTDet, Mask R-CNN.
BASE = {
    'batch_size': 64,
    'num_steps': 184_375,
    'image_size': (1024, 1024),
    'num_classes': 80,
    'trained': 'all',
    'model.variant': 'vit_base',
    'model.relative_positions': 'vitdet',
    'model.cls_token': False,
    'model.window': 14,
    'model.global_blocks': (2, 5, 8, 11),
    'model.drop_path': 0.1,
    'model.channels': 256,
    'model.anchor_sizes': (32, 64, 128, 256, 512),
    'model.anchor_ratios': (0.5, 1, 2),
    'model.proposal_convolutions': 2,
    'model.anchor_thresholds': (0.3, 0.7),
    'model.anchor_samples': 256,
    'model.anchor_positives': 0.5,
    'model.before_nms': 1000,
    'model.before_nms_train': 2000,
    'model.after_nms': 1000,
    'model.proposal_nms': 0.7,
    'model.roi_threshold': 0.5,
    'model.roi_samples': 512,
    'model.roi_positives': 0.25,
    'model.box_size': 7,
    'model.mask_size': 14,
    'model.box_convolutions': 4,
    'model.mask_convolutions': 4,
    'model.box_width': 1024,
    'model.box_weights': (10, 10, 5, 5),
    'model.score_threshold': 0.05,
    'model.detection_nms': 0.5,
    'model.detections': 100,
    'dataset.name': 'coco',
    'dataset.jitter': (0.1, 2.0),
    'dataset.max_boxes': 100,
    'dataset.flip': True,
    'dataset.apply_exif': True,
    'dataset.augment': '',
    'dataset.scale': 255,
    'dataset.mean': (0.485, 0.456, 0.406),
    'dataset.std': (0.229, 0.224, 0.225),
    'optimizer.name': 'adamw',
    'optimizer.b1': 0.9,
    'optimizer.b2': 0.999,
    'optimizer.weight_decay': 0.1,
    'optimizer.layer_decay': 0.7,
    'optimizer.schedule': 'steps',
    'optimizer.warmup_from': 0.001,
    'optimizer.clip_norm': None,
    'ema_decay': None,
}
LARGE = BASE | {
    'model.variant': 'vit_large',
    'model.drop_path': 0.4,
    'model.global_blocks': (5, 11, 17, 23),
    'optimizer.layer_decay': 0.8,
}
HUGE = BASE | {
    'num_steps': 138_281,
    'model.variant': 'vit_huge',
    'model.patch_size': 16,
    'model.drop_path': 0.5,
    'model.global_blocks': (7, 15, 23, 31),
    'optimizer.layer_decay': 0.9,
}


@pytest.mark.parametrize(
    ('recipe', 'expected', 'drops'),
    [
        (detect_coco_base, BASE, (163_889, 177_546)),
        (detect_coco_large, LARGE, (163_889, 177_546)),
        (detect_coco_huge, HUGE, (122_916, 133_159)),
    ],
    ids=['base', 'large', 'huge'],
)
def test_recipes_of_coco_are_the_published_ones(recipe, expected, drops):
    config = recipe.get_config()
    actual = {name: functools.reduce(getattr, name.split('.'), config) for name in expected}
    assert actual == expected
    assert config.optimizer.base_lr * config.batch_size / 256 == pytest.approx(1e-4)
    assert config.optimizer.warmup_epochs * 118_287 / 64 == pytest.approx(250)
    steps = [share * config.num_steps for share in config.optimizer.drop_at]
    assert steps == pytest.approx(drops, abs=1)
    assert not unset_fields(config)


def test_at_the_size_of_coco_the_rule_is_the_recipe_and_few_images_are_seen_more_often():
    def chosen(examples):
        config = choose(detect.get_config(), examples=examples, width=768, devices=1)
        peak = config.optimizer.base_lr * config.batch_size / 256
        return config.batch_size, config.num_epochs, peak

    assert chosen(118_287) == (64, 100, pytest.approx(1e-4))
    batch, epochs, peak = chosen(300)
    assert (batch, peak) == (16, pytest.approx(5e-5))
    assert epochs * 300 / batch == pytest.approx(2000)
    assert chosen(50)[1] == 200
    frozen = detect.get_config()
    frozen.trained = 'head'
    frozen = choose(frozen, examples=300, width=768, devices=1)
    assert frozen.optimizer.base_lr * 16 / 256 == pytest.approx(5e-4)


def test_examples_have_boxes_and_no_masks_of_classes():
    config = detect_coco_base.get_config()
    assert has_instances(config) and not has_masks(config)
    assert padding(config) == pytest.approx((123.675, 116.28, 103.53))


def test_model_and_statistics_come_from_the_pretrained_model_and_data_do_not(pretrained, tmp_path):
    config = detect.get_config()
    config.init_from = str(pretrained[0])
    apply_overrides(config, ['dataset.path=~/scenes', 'dataset.annotations=~/labels.json'])
    apply_overrides(config, ['image_size=128', 'dataset.jitter=0.5,1.5', 'dataset.max_boxes=20'])
    config = inherit(config, tmp_path)
    source = from_json((pretrained[0] / 'config.json').read_text())
    assert config.model.width == source.model.width
    assert config.dataset.mean == source.dataset.mean
    assert config.image_size == (128,) and config.dataset.jitter == (0.5, 1.5)
    assert config.dataset.name == 'coco'
    assert '~' not in config.dataset.path + config.dataset.annotations
    assert not config.model.cls_token and config.model.relative_positions == 'vitdet'
    assert not changed_fields(config, from_json(to_json(config)))
