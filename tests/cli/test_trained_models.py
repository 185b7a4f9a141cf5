"""`mae-jax eval` and `mae-jax embed`, as a user starts them."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers.commands import ROOT
from helpers.tiny_runs import evaluations, make_image_folder

pytestmark = pytest.mark.slow  # processes of their own


def mae_jax(*arguments, cwd):
    command = [sys.executable, '-m', 'mae_jax', *map(str, arguments)]
    environment = {'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu', 'HOME': str(cwd)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_run_is_evaluated_by_its_directory(fine_tuned, tmp_path):
    workdir = shutil.copytree(fine_tuned[0], tmp_path / 'run')
    done = mae_jax('eval', 'run', '--set', 'eval_crop_share=1.0', cwd=tmp_path)
    assert done.returncode == 1 and "no config field 'eval_crop_share'" in done.stderr
    done = mae_jax('eval', 'run', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = list(evaluations(workdir).values())[-1]['eval/top1']
    assert f'{expected:.4f} top-1' in done.stdout
    assert json.loads((workdir / 'config.json').read_text())['mode'] == 'train'


def test_a_folder_is_embedded(pretrained, tmp_path):
    make_image_folder(tmp_path / 'photos', 'ab', count=3)
    done = mae_jax('embed', pretrained[0], 'photos', 'out.npz', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '6 images, 2 classes, 0 unreadable' in done.stdout
    assert np.load(tmp_path / 'out.npz')['features'].shape == (6, 16)
    done = mae_jax('embed', 'nowhere', 'photos', 'more.npz', cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith('error: ')
    assert 'Traceback' not in done.stderr and done.stderr.count('\n') == 1
