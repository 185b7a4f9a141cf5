"""README.md, docs/getting-started.md and docs/encoder.md do as they stand what they promise."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import ROOT
from helpers.detectors import FIELDS, as_flags
from helpers.documents import blocks
from helpers.environment import xla_flags
from helpers.photographs import photograph
from helpers.scenes import draw_scenes
from PIL import Image
from pycocotools.coco import COCO

SHORTER = ' --config.num_steps=2'
DETECTOR = {name: value for name, value in FIELDS.items() if name in (
    'image_size', 'batch_size', 'model.channels', 'model.anchor_sizes', 'model.box_width',
)} | {'model.score_threshold': 0.0}  # fmt: skip
"""For two steps on a CPU that detect anything."""
ENCODER = ROOT / 'docs/encoder.md'


def python_of(page) -> list[str]:
    return [block.text for block in blocks(page) if block.language == 'python']


@pytest.fixture
def beside_a_run(pretrained, tmp_path, monkeypatch):
    """Runs a test where `runs/quickstart` is a finished run."""
    (tmp_path / 'runs').mkdir()
    (tmp_path / 'runs' / 'quickstart').symlink_to(pretrained[0])
    monkeypatch.chdir(tmp_path)


def test_ten_lines_of_the_readme_give_features(beside_a_run):
    os.rename('runs/quickstart', 'runs/photos')
    write_photographs('photos')
    (block,) = python_of(ROOT / 'README.md')
    assert len(block.splitlines()) <= 10
    names = {}
    exec(block, names)
    assert len(names['vectors']) == len(names['images']) == 2
    assert np.isfinite(names['vectors']).all()
    assert (names['vectors'][0] != names['vectors'][1]).any()


@pytest.mark.slow
def test_python_of_the_guide_trains_a_head_and_goes_to_nnx(beside_a_run, capsys):
    names = {'__name__': 'guide'}
    for block in python_of(ENCODER):
        exec(block, names)
    (accuracy,) = re.findall(r'^accuracy (.*)$', capsys.readouterr().out, re.M)
    assert float(accuracy) > 0.6  # by chance 0.1; the encoder has seen four steps
    encoder, images = names['encoder'], names['images']
    expected = encoder.apply(
        {'params': names['pretrained']}, images, method='features', output='mean'
    )
    np.testing.assert_allclose(names['features'], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_python_of_the_page_about_it_trains_on_arrays(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {'__name__': 'guide'}
    for block in python_of(ROOT / 'docs/python.md'):
        exec(block, names)
    assert len(names['embedding'].features) == len(names['held_out']) == 360
    assert (names['embedding'].labels == names['digits'].target[1437:]).all()
    assert names['inputs'].shape == (2, 8, 8, 1)
    assert '(2, 8, 8, 1) MAE' in capsys.readouterr().out


def write_photographs(folder) -> None:
    """Writes <folder>/{cat,dog}/{1 ... 30}.jpg."""
    for label in ('cat', 'dog'):
        for number in range(1, 31):
            path = Path(folder, label, f'{number}.jpg')
            path.parent.mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(photograph(2 * number + (label == 'cat')))
            image.resize((90, 70)).save(path)


def shell_lines(page) -> list[str]:
    """Returns the commands of a page that need neither an installation nor a network."""
    lines = [line for block in blocks(page) if block.language == 'sh'
             for line in block.text.splitlines()]  # fmt: skip
    lines = [line.partition(' # ')[0].rstrip() for line in lines if line.startswith('mae-jax ')]
    if importlib.util.find_spec('jax2onnx') is None:
        lines = [line for line in lines if '--to onnx' not in line]
    return lines


@pytest.mark.slow
@pytest.mark.parametrize('page', ['README.md', 'docs/getting-started.md'])
def test_commands_run_one_after_the_other_in_a_directory_with_photographs(page, tmp_path):
    write_photographs(tmp_path / 'photos')
    kinds = [f'kind {number}' for number in range(80)]
    for split, count in (('train2017', 16), ('val2017', 9)):
        draw_scenes(tmp_path / 'coco', count, 64, count, categories=kinds, split=split)
    environment = os.environ | {
        'PYTHONPATH': str(ROOT),
        'XLA_FLAGS': xla_flags(),
        'JAX_PLATFORMS': 'cpu',
    }
    for line in shell_lines(ROOT / page):
        line += SHORTER if line.startswith('mae-jax train ') and ' knn ' not in line else ''
        line = ' '.join([line, *(as_flags(DETECTOR) if 'train detect' in line else ())])
        process = subprocess.run(
            ['bash', '-c', line.replace('mae-jax', f'{sys.executable} -m mae_jax', 1)],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.returncode == 0, f'{line}\n{process.stdout}'
        assert 'Traceback' not in process.stdout, f'{line}\n{process.stdout}'
    with np.load(tmp_path / 'features.npz') as features:
        assert len(features['features']) == len(features['names']) == 60
        assert sorted(set(features['labels'].tolist())) == [0, 1]
    assert Image.open(tmp_path / 'grid.png').width > 300
    if page == 'README.md':
        truth = COCO(str(tmp_path / 'coco/annotations/instances_val2017.json'))
        found = truth.loadRes(str(tmp_path / 'runs/detect/detections.json'))
        assert {found.anns[i]['category_id'] for i in found.getAnnIds()} <= set(truth.getCatIds())
        assert found.getAnnIds() and len(truth.getCatIds()) == 80
