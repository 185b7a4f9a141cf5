"""A wheel in a virtual environment of its own and an empty directory: all that a checkout does."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers.commands import ROOT
from helpers.environment import xla_flags
from helpers.tiny_runs import make_image_folder

SMALL = (
    '--config.num_steps=2',
    '--config.batch_size=4',
    '--config.image_size=16',
    '--config.model.patch_size=8',
    '--config.model.width=16',
    '--config.model.depth=1',
    '--config.model.heads=2',
    '--config.model.dtype=float32',
)
TINY = (
    *SMALL,
    '--config.model.decoder_width=16',
    '--config.model.decoder_depth=1',
    '--config.model.decoder_heads=2',
    '--config.checkpoint_every_steps=2',
)
ABLATION = (
    '--config.pretrain.num_epochs=1',
    '--config.linprobe.num_epochs=1',
    '--config.finetune.num_epochs=1',
    '--config.batch_size=8',
    '--config.model.depth=1',
)


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """Installs a wheel, and returns the environment's directory of programs."""
    folder = tmp_path_factory.mktemp('installed')
    pip = [sys.executable, '-m', 'pip', '--quiet', '--disable-pip-version-check']
    source = folder / 'source'  # without build/, which may hold files of older builds
    for name in ('mae_jax', 'configs'):
        ignored = shutil.ignore_patterns('__pycache__', '*.so')
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ('setup.py', 'setup.cfg', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, source)
    subprocess.run([*pip, 'wheel', '--no-deps', '-w', folder, source], check=True)
    (wheel,) = folder.glob('*.whl')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', folder / 'venv'], check=True)
    (packages,) = folder.glob('venv/lib/*/site-packages')
    subprocess.run([*pip, 'install', '--no-deps', '--target', packages, wheel], check=True)
    (packages / 'dependencies.pth').write_text(sysconfig.get_path('purelib'))
    program = packages / 'bin' / 'mae-jax'
    lines = program.read_text().splitlines(keepends=True)
    program.write_text(''.join([f'#!{folder}/venv/bin/python\n', *lines[1:]]))
    return packages / 'bin'


@pytest.fixture(scope='module')
def shell(installed, tmp_path_factory):
    """Runs a program of the environment: shell(*arguments) -> output; the directory is `.at`."""
    directory = tmp_path_factory.mktemp('empty')
    variables = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}

    def run(*arguments, status=0):
        done = subprocess.run(
            [installed / 'mae-jax', *map(str, arguments)],
            cwd=directory,
            env=variables | {'XLA_FLAGS': xla_flags()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        assert done.returncode == status, done.stdout
        assert 'Traceback' not in done.stdout
        return done.stdout

    run.at = directory
    return run


@pytest.fixture(scope='module')
def photos(shell):
    """A folder of two classes with held-out images, `photos`."""
    for split in ('train', 'val'):
        make_image_folder(shell.at / 'photos' / split, 'ab', count=8, size=48)
    return 'photos'


@pytest.fixture(scope='module')
def pretrained(shell, photos):
    """A run of `mae-jax train folder`, in runs/folder."""
    fields = ('--config.dataset.channels=1', '--config.dataset.mean=.5', '--config.dataset.std=.5')
    output = shell('train', 'folder', f'--config.dataset.path={photos}', *TINY, *fields)
    assert 'folder in runs/folder' in output.splitlines()[0] and 'finished at step 2 of 2' in output
    return 'runs/folder'


pytestmark = pytest.mark.slow


def test_the_package_has_its_recipes_and_version(shell, installed):
    assert shell('--version').split() == ['mae_jax', '0.1.0']
    code = (
        'import importlib.metadata, mae_jax\n'
        'from mae_jax.configs import vit_large, ablations\n'
        'print(vit_large.__file__, importlib.metadata.version("mae_jax") == mae_jax.__version__)'
    )
    python = installed.parents[3] / 'bin' / 'python'
    done = subprocess.run([python, '-c', code], cwd=shell.at, capture_output=True, text=True)
    path, same = done.stdout.split()
    assert Path(path).is_relative_to(installed.parent) and same == 'True'
    assert (installed.parent / 'mae_jax' / 'py.typed').exists()
    assert 'model.width' in shell('fields', 'model')


def test_a_run_is_probed_looked_at_and_converted(shell, photos, pretrained):
    finetune = ('train', 'finetune', f'--config.init_from={pretrained}', '--config.num_steps=2')
    assert 'finished at step 2' in shell(*finetune, '--config.batch_size=4')
    knn = shell('train', 'knn', f'--config.init_from={pretrained}', '--config.batch_size=4',
                '--config.knn.shots=(1,)', '--config.knn.neighbours=3')  # fmt: skip
    assert '16 held-out images' in knn
    picture = shell('visualize', pretrained, f'{photos}/val/a/0.png', '--out=grid.png')
    assert 'grid.png' in picture and (shell.at / 'grid.png').exists()
    assert 'is written' in shell('convert', pretrained, 'model.safetensors')
    assert 'images' in shell('prepare', photos, 'prepared', '--channels=1', '--workers=1')


def test_recipes_of_the_paper_train_and_are_planned(shell):
    synthetic = ('--config.dataset.name=synthetic', '--config.dataset.synthetic_examples=64')
    for config in ('vit_large', 'configs/vit_base.py', 'ablations:mask_block_50'):
        assert 'finished at step 2' in shell('train', config, *TINY, *synthetic)
    planned = shell('plan', 'vit_huge', '--devices=4', '--chip=h100', '--examples=1000', *TINY)
    assert 'h100' in planned


def test_a_config_of_ones_own_starts_from_a_recipe(shell):
    own = '    config = vit_base.get_config()\n    config.num_steps = 0\n    return config\n'
    for package in ('mae_jax.configs', 'configs'):
        text = f'from {package} import vit_base\n\n\ndef get_config():\n{own}'
        (shell.at / 'own.py').write_text(text)
        output = shell('train', 'own.py', '--config.dataset.name=digits', status=1)
        assert 'own.py in runs/own' in output and 'error: ' in output


def test_rows_of_an_ablation_are_trained(shell, photos):
    options = ('--suite=ablation_suite:small', '--out=ablations', '--rows', 'target_dvae')
    shell('ablate', *options, f'--config.dataset.path={photos}', *ABLATION)
    assert 'dVAE' in (shell.at / 'ablations' / 'table.md').read_text()
