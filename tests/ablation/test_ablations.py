"""configs/ablations.py: every row is the paper's, and trains."""

import functools
import operator

import pytest

from configs import ablation_suite, ablations, finetune_large, linprobe_large, vit_large
from mae_jax.config.data import make_augment
from mae_jax.config.length import make_learning_rate, make_length
from mae_jax.experiment.setup import check_fields
from mae_jax.tasks import make_task

PAPER = """
decoder_depth_1             84.8 65.5
decoder_depth_2             84.9 70.0
decoder_depth_4             84.9 71.9
decoder_depth_8             84.9 73.5
decoder_depth_12            84.4 73.3
decoder_width_128           84.9 69.1
decoder_width_256           84.8 71.3
decoder_width_512           84.9 73.5
decoder_width_768           84.4 73.1
decoder_width_1024          84.3 73.1
encoder_with_mask_tokens    84.2 59.6
encoder_without_mask_tokens 84.9 73.5
target_pixel                84.9 73.5
target_normalized_pixel     85.4 73.9
target_pca                  84.6 72.3
target_dvae                 85.3 71.6
augment_none                84.0 65.7
augment_fixed_crop          84.7 73.1
augment_random_crop         84.9 73.5
augment_color_jitter        84.3 71.9
mask_random_75              84.9 73.5
mask_block_50               83.9 72.3
mask_block_75               82.8 63.9
mask_grid_75                84.0 66.0
"""
"""Table 1 of arXiv 2111.06377: fine-tuning and linear probe, top-1 on ImageNet-1k in percent."""

CHANGED = {
    'decoder_depth_1': {'model.decoder_depth': 1},
    'decoder_width_1024': {'model.decoder_width': 1024},
    'encoder_with_mask_tokens': {'model.encoder_mask_tokens': True},
    'target_normalized_pixel': {'target.name': 'normalized_pixel'},
    'target_pca': {'target.name': 'pca', 'target.components': 96},
    'target_dvae': {'target.name': 'token', 'target.codes': 8192},
    'augment_none': {'dataset.crop': 'center', 'dataset.flip': False, 'dataset.augment': ''},
    'augment_fixed_crop': {'dataset.crop': 'fixed', 'dataset.flip': True, 'dataset.augment': ''},
    'augment_color_jitter': {'dataset.crop': 'retry', 'dataset.flip': True},
    'mask_block_50': {'mask.strategy': 'block', 'mask.ratio': 0.5},
    'mask_block_75': {'mask.strategy': 'block', 'mask.ratio': 0.75},
    'mask_grid_75': {'mask.strategy': 'grid', 'mask.ratio': 0.75},
    'mask_ratio_40': {'mask.strategy': 'random', 'mask.ratio': 0.4},
    'epochs_1600': {'num_epochs': 1600, 'optimizer.warmup_epochs': 40},
    'decoder_depth_0': {'model.decoder_depth': 0},
    'loss_all': {'target.loss_on': 'all'},
}
BASE = {
    'model.variant': 'vit_large',
    'num_epochs': 800,
    'batch_size': 4096,
    'target.name': 'pixel',
    'target.loss_on': 'hidden',
    'model.decoder_depth': 8,
    'model.decoder_width': 512,
    'model.encoder_mask_tokens': False,
    'mask.strategy': 'random',
    'mask.ratio': 0.75,
    'dataset.crop': 'retry',
    'dataset.flip': True,
}


def read(config, field: str):
    return functools.reduce(operator.getitem, field.split('.'), config)


def flat(tree: dict, prefix: str = '') -> dict:
    fields = {}
    for name, value in tree.items():
        nested = isinstance(value, dict)
        fields |= flat(value, f'{prefix}{name}.') if nested else {prefix + name: value}
    return fields


def test_the_papers_figures_stand_beside_its_rows():
    paper = {name: (float(f), float(p)) for name, f, p in map(str.split, PAPER.split('\n')[1:-1])}
    stated = {
        name: (row.finetune, row.linprobe)
        for name, row in ablations.ROWS.items()
        if row.table.startswith('1')
    }
    assert stated == paper
    others = [row for name, row in ablations.ROWS.items() if name not in paper]
    assert all(row.finetune is row.linprobe is None for row in others)  # plots, and beyond
    assert {row.table for row in ablations.ROWS.values()} == set(ablations.TABLES)


@pytest.mark.parametrize('name', CHANGED)
def test_a_row_is_the_base_but_for_its_own_fields(name):
    config = ablations.get_config(name)
    expected = BASE | CHANGED[name]
    assert {field: read(config, field) for field in expected} == expected
    differing = {
        field
        for field, value in flat(config.to_dict()).items()
        if value != read(vit_large.get_config(), field)
    }
    assert differing <= {'target.name', *ablations.ROWS[name].changes}


def test_an_unknown_row_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match='mask_grid_50 is unknown: choose .*mask_grid_75'):
        ablations.get_config('mask_grid_50')


@pytest.mark.parametrize(
    ('stage', 'large'), [('finetune', finetune_large), ('linprobe', linprobe_large)]
)
def test_rows_are_fine_tuned_and_probed_as_the_papers_vit_large(stage, large):
    ours = flat(ablations.FROM_PRETRAINED[stage]().to_dict())
    theirs = flat(large.get_config().to_dict())
    assert ours.keys() == theirs.keys()
    differing = {field for field in ours if ours[field] != theirs[field]}
    assert all(ours[field] is None for field in differing)  # taken from `init_from`
    assert {'model.variant', 'image_size'} < differing


SMALL = ablation_suite.get_suite('small')
QUICK = ('decoder_depth_0', 'encoder_with_mask_tokens', 'target_pca', 'mask_grid_75', 'loss_all')


@pytest.mark.parametrize(
    'name', [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in ablations.ROWS]
)
def test_every_row_builds_a_task_at_small_size(name):
    config = ablations.get_config(name)
    changes = {**SMALL.pretrain, **ablations.ROWS[name].changes, **SMALL.changes.get(name, {})}
    config.update_from_flattened_dict(changes)
    config.model.depth = 1
    config.target.tokenizer = 'helpers.ablation_suites:darkest'
    check_fields(config)
    task = make_task(config, None)  # traces the model
    make_augment(config)
    length = make_length(config, 10_000)
    task.make_optimizer(config.optimizer, make_learning_rate(config, length))
