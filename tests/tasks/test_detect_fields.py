"""What the config of a detection run says, and what of it is refused."""

from types import SimpleNamespace

import pytest

from configs import detect, detect_coco_base, detect_coco_huge, detect_coco_large
from mae_jax.errors import UserError
from mae_jax.tasks.detect_fields import make_detect

SOURCE = SimpleNamespace(num_classes=3, class_names=['a', 'b', 'c'])


def config_of(**fields):
    config = detect.get_config()
    sizes = {'variant': 'vit_tiny', 'patch_size': 8, 'width': 16, 'depth': 2, 'heads': 2}
    config.model.update(sizes, dtype='float32')
    config.image_size = (32, 32)
    config.dataset.update(channels=3, scale=255.0, mean=(0.5,) * 3, std=(0.25,) * 3)
    config.optimizer.base_lr = 1e-3
    config.update_from_flattened_dict(fields)
    return config


def test_fields_reach_the_model():
    fields = {'model.channels': 24, 'model.detection_nms': 0.6, 'trained': '1', 'per_class': False}
    task = make_detect(config_of(**fields), SOURCE)
    assert task.model.options.channels == 24 and task.model.options.detection_nms == 0.6
    assert task.model.num_classes == 3 and task.names == ('a', 'b', 'c')
    assert task.model.encoder.frozen_blocks == 1 and not task.model.encoder.options.cls_token
    assert (task.trained, task.per_class, task.max_boxes, task.layer_decay) == (
        1.0,
        False,
        100,
        0.7,
    )


@pytest.mark.parametrize('recipe', [detect_coco_base, detect_coco_large, detect_coco_huge])
def test_the_recipes_have_the_numbers_of_the_model_by_default(recipe):
    """Fields of the config are the defaults of `DetectorOptions`, ViTDet's."""
    config = recipe.get_config()
    config.model.dtype = 'float32'
    task = make_detect(config, SimpleNamespace(num_classes=80))
    assert task.model.options == type(task.model.options)()
    depth, blocks = task.model.encoder.depth, task.model.encoder.options.global_blocks
    assert blocks == tuple(depth // 4 * (n + 1) - 1 for n in range(4))
    assert task.model.encoder.options.window == 14 and task.model.encoder.patch_size == 16


@pytest.mark.parametrize(
    'fields, message',
    [
        ({'model.drop_path': 1.0}, 'model.drop_path=1.0 must be at least 0 and below 1'),
        ({'ema_decay': 1.5}, 'ema_decay=1.5'),
        ({'optimizer.layer_decay': 0.0}, 'optimizer.layer_decay=0.0'),
        ({'trained': '3'}, 'trained=3 blocks, but the model has 2'),
        ({'model.cls_token': True}, 'model.cls_token=False'),
    ],
)
def test_mistakes_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        make_detect(config_of(**fields), SOURCE)


def test_data_without_categories_are_refused():
    with pytest.raises(UserError, match="dataset.name='coco'"):
        make_detect(config_of(), SimpleNamespace(num_classes=0))


def test_splits_of_other_categories_are_refused():
    task, other = make_detect(config_of(), SOURCE), SimpleNamespace(class_names=['a', 'c', 'b'])
    task.check_data(SOURCE, SOURCE)
    with pytest.raises(UserError, match=r'eval_split \(a, c, b, ...\) are not the same'):
        task.check_data(SOURCE, other)
