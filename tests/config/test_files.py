"""Recipes by name, and configs in files, from any directory and any kind of installation."""

import subprocess
import sys

import pytest
from helpers.commands import ROOT

from mae_jax.config.files import RECIPES, load_config, recipes
from mae_jax.config.saved import to_json
from mae_jax.errors import UserError

OWN = """
from {package} import vit_base

def get_config():
    config = vit_base.get_config()
    config.batch_size = 3
    return config
"""


def test_the_recipes_are_the_files_of_configs():
    files = {path.stem for path in (ROOT / 'configs').glob('*.py')}
    assert {*recipes()} | {*recipes('get_suite')} == files
    assert {'vit_large', 'ablations'} <= {*recipes()}
    assert recipes('get_suite') == ['ablation_suite', 'probe_blocks']
    assert type(ROOT)(RECIPES) == ROOT / 'configs'


@pytest.mark.parametrize('name', ['vit_base', 'configs/vit_base.py', f'{ROOT}/configs/vit_base.py'])
def test_a_recipe_is_found_from_any_directory(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(name).model.variant == 'vit_base'


def test_a_file_of_the_users_is_preferred_and_its_argument_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'vit_base.py').write_text(
        'from mae_jax.configs import default\n\ndef get_config(seed):\n'
        '    config = default.get_config()\n    config.seed = int(seed)\n    return config\n'
    )
    assert load_config('vit_base.py:7').seed == 7
    assert load_config('vit_base').seed == 0
    with pytest.raises(UserError, match='vit_base.py: .*missing 1 required'):
        load_config('vit_base.py')


@pytest.mark.parametrize('package', ['configs', 'mae_jax.configs'])
@pytest.mark.parametrize('where', ['checkout', 'elsewhere'])
def test_a_config_may_start_from_a_recipe_under_both_names(package, where, tmp_path):
    """`configs` is what files name that were written in a checkout."""
    (tmp_path / 'own.py').write_text(OWN.format(package=package))
    code = (
        'from mae_jax.config.files import load_config\n'
        f'print(load_config({str(tmp_path / "own.py")!r}).batch_size)'
    )
    path = str(ROOT) if where == 'checkout' else str(tmp_path)
    (tmp_path / 'mae_jax').symlink_to(ROOT / 'mae_jax')
    done = subprocess.run(
        [sys.executable, '-c', code],
        cwd=path,
        env={'PYTHONPATH': path},
        capture_output=True,
        text=True,
    )
    assert done.stdout == '3\n', done.stderr


def test_a_config_is_not_changed_by_the_next(tmp_path):
    before = to_json(load_config('folder'))
    load_config('folder', ['batch_size=1', 'model.depth=1'])
    assert to_json(load_config('folder')) == before
