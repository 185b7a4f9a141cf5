"""configs/probe_blocks.py: a row for each block of an encoder, its table and its curve."""

import json
import subprocess
import sys

import numpy as np
import pytest
from helpers.ablation_suites import results
from helpers.commands import ROOT

from configs import knn
from mae_jax.ablation.plot import make_figure, swept_field
from mae_jax.ablation.report import format_table, write_report
from mae_jax.ablation.run import format_result
from mae_jax.ablation.suite import load_suite
from mae_jax.errors import UserError
from mae_jax.experiment.run import run

SUITE = 'configs/probe_blocks.py'
DONE = {'status': 'done', 'exit_status': 0, 'resumed': False, 'seconds': 10.0}


@pytest.fixture
def suite(monkeypatch, pretrained):
    """That of an encoder of two blocks."""
    monkeypatch.chdir(ROOT)
    return load_suite(SUITE, (f'init_from={pretrained[0]}', 'knn.linear=ridge'))


def test_every_block_is_a_run_of_the_evaluation(suite, pretrained, tmp_path):
    assert list(suite.rows) == ['block_0', 'block_1']
    assert swept_field(suite) == 'probe_block'
    for block, row in enumerate(suite.rows):
        (stage,) = suite.stages(tmp_path, suite.run_of[row], 0)
        expected = knn.get_config()
        fields = {'init_from': str(pretrained[0]), 'probe_block': block}
        expected.update_from_flattened_dict(fields | {'knn.linear': 'ridge', 'knn.shots': ()})
        assert stage.config.to_dict() == expected.to_dict()
        assert stage.directory == tmp_path / row / 'seed0' / 'probe'


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ((), 'probes an encoder: give --config.init_from'),
        (('init_from=/nowhere',), '/nowhere is neither a work directory'),
        (('init_from=/nowhere', 'knn.linea=ridge'), "did you mean 'knn.linear'"),
    ],
)
def test_a_mistake_is_one_sentence(monkeypatch, settings, message):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=message) as error:
        load_suite(SUITE, settings)
    assert '\n' not in str(error.value)


def test_a_suite_without_arguments_says_so(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match='takes no argument'):
        load_suite(f'{SUITE}:cls')


RESULTS = {
    'block_0': {0: {'probe': DONE | {'knn': 0.5, 'linear': 0.625}}},
    'block_1': {0: {'probe': DONE | {'knn': 0.4375, 'linear': 0.75}}},
}


def test_table_and_curve_have_the_accuracies_after_each_block(suite, pretrained, tmp_path):
    lines = format_table(suite, RESULTS).splitlines()
    assert lines[0] == f'# Probes of {pretrained[0]}'
    assert lines[lines.index('## After each block') + 2 :] == [
        '| row | k-NN | linear probe | seeds |',
        '|---|---|---|---|',
        '| block 0 | 50.0 | 62.5 | 1 |',
        '| block 1 | 43.8 | 75.0 | 1 |',
    ]
    write_report(suite, tmp_path, RESULTS)
    rows = json.loads((tmp_path / 'results.json').read_text())['rows']
    assert rows['block_1']['knn'] == {'0': 43.75} and rows['block_1']['paper'] == {}
    assert format_result(RESULTS['block_0'][0]['probe']).startswith('k-NN 50.00%, linear probe 62')
    pytest.importorskip('matplotlib')
    figure = make_figure(suite, RESULTS)
    assert figure.get_suptitle() == f'Probes of {pretrained[0]}'
    for panel, title, expected in zip(
        figure.axes, ('k-NN', 'linear probe'), ((50, 43.75), (62.5, 75)), strict=True
    ):
        assert panel.get_title() == title
        curve = max(panel.lines, key=lambda line: len(set(line.get_xdata())))
        np.testing.assert_array_equal(curve.get_xdata(), [0, 1])
        np.testing.assert_allclose(curve.get_ydata(), expected)
        assert panel.get_xlabel() == 'features after block'


def test_reading_the_depth_starts_no_backend(pretrained):
    code = (
        'from mae_jax.ablation.suite import depth_of; from jax._src import xla_bridge; '
        f'print(depth_of({str(pretrained[0])!r}), len(xla_bridge._backends))'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == '2 0', done.stderr


@pytest.mark.slow
def test_the_command_measures_every_block(pretrained, tmp_path):
    settings = ('--config.dataset.eval_crop_share=1.0', '--config.knn.linear=ridge')
    command = [sys.executable, '-m', 'mae_jax', 'ablate', '--suite=probe_blocks']
    command += [f'--out={tmp_path / "out"}', f'--config.init_from={pretrained[0]}', *settings]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = results(tmp_path / 'out')
    assert (tmp_path / 'out' / 'plot.png').exists()
    config = knn.get_config()
    fields = {'init_from': str(pretrained[0]), 'dataset.eval_crop_share': 1.0, 'knn.shots': ()}
    config.update_from_flattened_dict(fields | {'knn.linear': 'ridge'})
    whole = run(config, tmp_path / 'whole')
    last = measured['block_1']['0']['probe']
    assert {name: last[name] for name in whole} == pytest.approx(whole, abs=2 / 360)
    assert measured['block_0']['0']['probe']['knn'] != last['knn']
