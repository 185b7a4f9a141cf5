"""A run writes what was chosen for it into config.json, and keeps that when it goes on."""

import json
import shutil

import pytest
from helpers.tiny_runs import SIZES

from configs import finetune, folder, linprobe
from mae_jax.config import recipe
from mae_jax.errors import UserError
from mae_jax.experiment.run import run


def probing(init_from, **fields):
    config = linprobe.get_config()
    fields = {'num_steps': 8, 'dataset.eval_crop_share': 1.0, 'model.dtype': 'auto'} | fields
    config.update_from_flattened_dict(fields | {'init_from': str(init_from)})
    return config


@pytest.fixture(scope='module')
def probed(pretrained, run_once):
    """A finished run of configs/linprobe.py: (directory, state, config)."""
    return run_once('recipe_probe', probing(pretrained[0]))


def saved(workdir):
    return json.loads((workdir / 'config.json').read_text())


def test_what_was_chosen_is_in_the_config_of_the_run(probed):
    config = saved(probed[0])
    assert config['batch_size'] == 128 and config['cache_features'] is True
    assert config['optimizer']['name'] == 'adamw'
    assert config['optimizer']['base_lr'] == pytest.approx(0.02)
    assert config['model']['dtype'] in ('float32', 'bfloat16')


def test_a_run_goes_on_as_it_began_whatever_the_rule_has_become(probed, tmp_path, monkeypatch):
    workdir = shutil.copytree(probed[0], tmp_path / 'copy')
    before = saved(workdir)
    monkeypatch.setattr(recipe, 'rule_of', lambda *_: recipe.Rule(1437, 32, 1.0, 0.5))
    monkeypatch.setattr(recipe, 'peak_learning_rate', lambda *_: 123.0)
    run(probing(before['init_from']), workdir)
    assert saved(workdir) == before


def test_another_value_than_the_chosen_one_is_another_run(probed, tmp_path):
    workdir = shutil.copytree(probed[0], tmp_path / 'copy')
    config = probing(saved(workdir)['init_from'], batch_size=64)
    with pytest.raises(UserError, match='batch_size was 128, now 64'):
        run(config, workdir)


def test_the_line_about_the_recipe_is_printed_once(probed, pretrained, tmp_path, capsys):
    config = finetune.get_config()
    small = SIZES | {'num_steps': 2, 'dataset.eval_crop_share': 1.0, 'eval_every_steps': 0}
    config.update_from_flattened_dict(small | {'init_from': str(pretrained[0])})
    run(config, tmp_path)
    line = 'batch 32, lr 7.1e-04, light augmentation: 1,437 images, 10 classes'
    assert line in capsys.readouterr().out.splitlines()
    run(config, tmp_path)
    assert line not in capsys.readouterr().out


def test_an_unknown_size_of_the_folder_config_is_refused():
    with pytest.raises(ValueError, match=r'folder\.py:phone is unknown: choose laptop or gpu'):
        folder.get_config('phone')
