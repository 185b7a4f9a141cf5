"""Files that an earlier version made are still of use: they resume, load and evaluate as they did.

tests/golden/make_earlier.py made them; its docstring names the version.
"""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import earlier_runs as earlier
import numpy as np
import pytest
from helpers.commands import ROOT
from helpers.environment import xla_flags

EXPECTED = json.loads((earlier.FOLDER / 'expected.json').read_text())


def unpack(folder):
    with tarfile.open(earlier.FOLDER / 'artifacts.tar.xz') as archive:
        archive.extractall(folder, filter='data')


@pytest.fixture(autouse=True)
def artifacts(tmp_path, monkeypatch):
    """Makes a new folder with the files of the earlier version the current directory."""
    unpack(tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='module')
def continued(tmp_path_factory):
    """Returns a folder with the same files, in which this version has gone on with all runs.

    In one process of one device, where the files were written on eight.
    """
    folder = tmp_path_factory.mktemp('continued')
    unpack(folder)
    execute([ROOT / 'tests/golden/earlier_runs.py'], folder, XLA_FLAGS=xla_flags())
    return folder


def execute(arguments, folder, **variables):
    """Runs Python with this version of the package in a folder, to its successful end."""
    environment = os.environ | {'PYTHONPATH': str(ROOT)} | variables
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def assert_same(actual, expected, tolerance=1e-6):
    """Compares numbers, and lists and dicts of them, but for the rounding of another CPU."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(actual[key], value, tolerance)
    elif isinstance(expected, list) and isinstance(expected[0], dict):
        for pair in zip(actual, expected, strict=True):
            assert_same(*pair, tolerance)
    else:
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'step'), earlier.RESUMES_AT.items())
def test_a_run_resumes_to_what_it_would_have_been_unstopped(continued, name, step):
    written = Path(f'runs/{name}/metrics.jsonl').read_text().splitlines()
    kept = [line for line in written if json.loads(line)['step'] <= step]
    lines = (continued / f'runs/{name}/metrics.jsonl').read_text().splitlines()
    assert kept and lines[: len(kept)] == kept  # speeds included: no step was taken again
    expected = EXPECTED['runs'][name]
    # Versions round bfloat16 in other places, and a batch norm enlarges that.
    dtype = json.loads(Path(f'runs/{name}/config.json').read_text())['model']['dtype']
    tolerance = 1e-6 if dtype == 'float32' else 2e-2
    assert_same(earlier.read_metrics(continued / f'runs/{name}'), expected['metrics'], tolerance)
    assert_same(earlier.measure_model(continued / f'runs/{name}'), expected['model'], tolerance)


@pytest.mark.slow
@pytest.mark.parametrize('name', earlier.EVALUATED)
def test_a_run_evaluates_to_the_same_accuracies(continued, name):
    evaluations = json.loads((continued / 'evaluations.json').read_text())
    assert evaluations[name] == EXPECTED['runs'][name]['evaluation']


@pytest.mark.slow
def test_a_converted_classifier_evaluates_as_the_run_it_was_converted_from(continued):
    evaluations = json.loads((continued / 'evaluations.json').read_text())
    assert evaluations['converted'] == EXPECTED['runs']['fine_tuning']['evaluation']


@pytest.mark.parametrize('name', earlier.CONVERTED)
@pytest.mark.parametrize('path', ['runs/{}', '{}.safetensors'])
def test_a_run_and_its_converted_file_load_as_the_same_model(path, name):
    path, expected = path.format(name), EXPECTED['converted'][name]
    # The final norm enlarges the rounding of a token whose values hardly differ.
    assert_same(earlier.measure_encoder(path), expected['encoder'], tolerance=1e-5)
    assert_same(earlier.measure_model(path), expected['model'])


def test_a_finished_linear_probe_loads_with_its_running_statistics():
    expected = EXPECTED['runs']['linear_probe']['model']
    assert_same(earlier.measure_model('runs/linear_probe'), expected)


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_prepared_data_holds_the_same_examples(split):
    assert earlier.read_prepared('prepared', split) == EXPECTED['prepared'][split]


def test_prepare_writes_a_missing_shard_and_leaves_the_others(tmp_path):
    missing = tmp_path / 'prepared/train-00001-of-00003.array_record'
    missing.unlink()
    others = {file: file.stat().st_mtime_ns for file in missing.parent.glob('*.array_record')}
    assert len(others) == 3
    execute(['-m', 'mae_jax', *earlier.PREPARE], tmp_path)
    assert earlier.read_prepared('prepared', 'train') == EXPECTED['prepared']['train']
    assert all(file.stat().st_mtime_ns == written for file, written in others.items())
