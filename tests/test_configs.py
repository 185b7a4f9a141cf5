"""Every config file: it builds, and its numbers are those of the paper or of its code."""

import functools
import importlib
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from mae_jax.config.data import make_augment
from mae_jax.config.length import make_learning_rate, make_length
from mae_jax.config.recipe import unset_fields
from mae_jax.errors import UserError
from mae_jax.evaluation.frozen_encoder import make_frozen_encoder
from mae_jax.experiment.inherit import inherit
from mae_jax.experiment.setup import check_fields, complete
from mae_jax.tasks import make_task

CONFIGS = sorted(path.stem for path in (Path(__file__).parents[1] / 'configs').glob('*.py'))
CONFIGS = [name for name in CONFIGS if not name.startswith(('ablation', 'probe'))]  # suites
GENERIC = {'detect', 'finetune', 'folder', 'linprobe', 'partial', 'segment'}
"""Those that leave batch size, length and learning rate to the data."""
INHERITING = {'detect', 'finetune', 'knn', 'linprobe', 'partial', 'segment', 'transfer'}
"""Those that take their model from `init_from`."""

IMAGENET = SimpleNamespace(num_classes=1000)
BASE, LARGE, HUGE = 'base', 'large', 'huge'


def get_config(name: str):
    return importlib.import_module(f'configs.{name}').get_config()


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_builds(name, pretrained, tmp_path):
    config = get_config(name)
    if name in INHERITING:
        with pytest.raises(UserError, match=r'model\.variant.* must be given, or .*init_from'):
            inherit(config, tmp_path)
        config.init_from = str(pretrained[0])
    if name == 'robustness':
        config.init_from = str(pretrained[0])
    config = inherit(config, tmp_path)
    if config.task == 'robustness':  # the model is that of init_from
        assert config.dataset.name == 'digits' and config.dataset.mean == (0.305,)
        return
    if config.task == 'knn':
        make_frozen_encoder(config, config.knn.pool)
        return
    check_fields(config)
    config = complete(config, 1_281_167, devices=8)
    config.model.depth = 4  # sizes of whole models: tests/models
    if 'decoder_depth' in config.model:
        config.model.decoder_depth = 1
    if config.model.get('global_blocks'):
        config.model.global_blocks = (1, 3)
    if 'taps' in config.model:
        config.model.taps = (0, 1, 2, 3)
    task = make_task(config, IMAGENET)  # traces the model
    length = make_length(config, 1_281_167)
    schedule = make_learning_rate(config, length)
    tx = task.make_optimizer(config.optimizer, schedule)
    make_augment(config)
    jax.eval_shape(tx.init, {'head': {'kernel': jax.ShapeDtypeStruct((2, 2), 'float32')}})
    peak = config.optimizer.base_lr * config.batch_size / 256
    assert float(schedule(length.warmup_steps)) == pytest.approx(peak)
    if config.task == 'classify':
        assert task.model.num_classes == 1000


@pytest.mark.parametrize('name', CONFIGS)
def test_only_generic_configs_leave_fields_to_the_data(name):
    unset = unset_fields(get_config(name))
    assert bool(unset) == (name in GENERIC), unset


@pytest.mark.parametrize('name', ['inaturalist2017', 'inaturalist2019', 'places205', 'places365'])
def test_every_transfer_set_has_a_config(name):
    config = importlib.import_module('configs.transfer').get_config(name)
    assert config.dataset.name == {'places365': 'places365_small'}.get(name, 'folder')
    assert config.num_classes is None


def of(base, large, huge):
    return {BASE: base, LARGE: large, HUGE: huge}


# The paper's tables 9 to 11 and its code; one value, or one each for base, large and huge.
MIXED = {
    'label_smoothing': 0.1,
    'mix.mixup': 0.8,
    'mix.cutmix': 1.0,
    'mix.switch_probability': 0.5,
    'dataset.augment': 'rand-m9-mstd0.5-inc1',
    'dataset.crop': 'retry',
    'dataset.crop_scale': (0.08, 1.0),
    'dataset.flip': True,
    'model.pool': 'mean',
    'model.head_std': 2e-5,
    'model.batch_norm': False,
    'optimizer.name': 'adamw',
    'optimizer.b1': 0.9,
}
RECIPES = {
    'finetune': MIXED
    | {
        'trained': 'all',
        'batch_size': 1024,
        'num_epochs': of(100, 50, 50),
        'dataset.erase': 0.25,
        'ema_decay': None,
        'model.drop_path': of(0.1, 0.2, 0.3),
        'optimizer.base_lr': of(5e-4, 1e-3, 1e-3),
        'optimizer.min_lr': 1e-6,
        'optimizer.b2': 0.999,
        'optimizer.weight_decay': 0.05,
        'optimizer.layer_decay': of(0.65, 0.75, 0.75),
        'optimizer.warmup_epochs': 5,
    },
    'partial': MIXED
    | {
        'batch_size': 1024,
        'num_epochs': 50,
        'ema_decay': None,
        'model.drop_path': of(0.1, 0.1, 0.2),
        'optimizer.base_lr': 1e-3,
        'optimizer.b2': 0.999,
        'optimizer.weight_decay': 0.05,
        'optimizer.layer_decay': 0.75,
        'optimizer.warmup_epochs': 5,
    },
    'linprobe': {
        'trained': 'head',
        'batch_size': 16384,
        'num_epochs': of(90, 50, 50),
        'label_smoothing': 0,
        'mix.mixup': 0,
        'mix.cutmix': 0,
        'ema_decay': None,
        'dataset.augment': '',
        'dataset.erase': 0,
        'dataset.crop': 'clamp',
        'dataset.crop_scale': (0.08, 1.0),
        'dataset.flip': True,
        'model.pool': 'cls',
        'model.batch_norm': True,
        'model.head_std': 0.01,
        'model.drop_path': 0,
        'optimizer.name': 'lars',
        'optimizer.momentum': 0.9,
        'optimizer.trust_coefficient': 0.001,
        'optimizer.base_lr': 0.1,
        'optimizer.min_lr': 0,
        'optimizer.weight_decay': 0,
        'optimizer.layer_decay': 1,
        'optimizer.warmup_epochs': 10,
    },
    'scratch': MIXED
    | {
        'trained': 'all',
        'batch_size': 4096,
        'num_epochs': of(300, 200, 200),
        'dataset.erase': 0,
        'ema_decay': 0.9999,
        'model.drop_path': of(0.1, 0.2, 0.2),
        'optimizer.base_lr': 1e-4,
        'optimizer.min_lr': 0,
        'optimizer.b2': 0.95,
        'optimizer.weight_decay': 0.3,
        'optimizer.layer_decay': 1,
        'optimizer.warmup_epochs': 20,
    },
    'vit': {
        'batch_size': 4096,
        'num_epochs': 800,
        'mask.ratio': 0.75,
        'target.name': 'normalized_pixel',
        'dataset.crop_scale': (0.2, 1.0),
        'dataset.flip': True,
        'dataset.augment': '',
        'model.decoder_width': 512,
        'model.decoder_depth': 8,
        'model.decoder_heads': 16,
        'optimizer.name': 'adamw',
        'optimizer.b1': 0.9,
        'optimizer.b2': 0.95,
        'optimizer.base_lr': 1.5e-4,
        'optimizer.min_lr': 0,
        'optimizer.weight_decay': 0.05,
        'optimizer.warmup_epochs': 40,
    },
}
IN_ALL = {
    'image_size': (224, 224),
    'optimizer.eps': 1e-8,
    'optimizer.clip_norm': None,
    'dataset.name': 'imagenet2012',
    'dataset.channels': 3,
    'dataset.scale': 255,
    'dataset.mean': (0.485, 0.456, 0.406),
    'dataset.std': (0.229, 0.224, 0.225),
}


@pytest.mark.parametrize('size', [BASE, LARGE, HUGE])
@pytest.mark.parametrize('recipe', RECIPES)
def test_recipes_are_the_published_ones(recipe, size):
    config = get_config(f'{recipe}_{size}')
    assert config.model.variant == f'vit_{size}'
    expected = {
        name: value[size] if isinstance(value, dict) else value
        for name, value in (RECIPES[recipe] | IN_ALL).items()
    }
    actual = {name: functools.reduce(getattr, name.split('.'), config) for name in expected}
    assert actual == expected
