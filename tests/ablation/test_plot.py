"""The plot of an ablation has the numbers of its table, less the default's."""

import numpy as np
import pytest
from helpers.ablation_suites import write_suite
from helpers.commands import ROOT

from mae_jax.ablation.plot import draw_plot, make_figure
from mae_jax.ablation.suite import load_suite

pytest.importorskip('matplotlib')


@pytest.fixture
def in_root(monkeypatch):
    """Runs a test in the directory that holds configs/."""
    monkeypatch.chdir(ROOT)


def done(**top1):
    return {stage: {'status': 'done', 'top1': value} for stage, value in top1.items()}


def dots(panel) -> dict[int, float]:
    """Place of a row -> where the dot of our mean is."""
    drawn = [
        line for line in panel.lines if line.get_marker() == 'o' and len(line.get_xdata()) == 1
    ]
    return {int(line.get_ydata()[0]): float(line.get_xdata()[0]) for line in drawn}


def diamonds(panel) -> dict[int, float]:
    """Place of a row -> where the paper's mark is."""
    (marks,) = panel.collections
    return {int(y): float(x) for x, y in marks.get_offsets()}


def test_rows_are_drawn_less_the_mean_of_the_default(in_root):
    suite = load_suite('configs/ablation_suite.py:table')
    results = {run: {} for run in suite.configs}
    results['default'] = {
        seed: done(finetune=top1, linprobe=0.4) for seed, top1 in ((0, 0.50), (1, 0.53), (2, 0.53))
    }
    results['mask_block_75'] = {0: done(finetune=0.48, linprobe=0.45), 1: done(finetune=0.50)}
    finetune, linear = make_figure(suite, results).axes
    names = list(suite.rows)
    block, defaults = (
        names.index('mask_block_75'),
        [place for place, name in enumerate(names) if suite.run_of[name] == 'default'],
    )
    expected = dict.fromkeys(defaults, 0.0)
    assert dots(finetune) == pytest.approx(expected | {block: 49.0 - 52.0})
    assert dots(linear) == pytest.approx(expected | {block: 45.0 - 40.0})
    bars = [line for line in finetune.lines if len(set(line.get_xdata())) == 2]
    ends = [line.get_xdata() for line in bars if set(line.get_ydata()) == {block}]
    np.testing.assert_allclose(ends, [(48.0 - 52.0, 50.0 - 52.0)])
    # The paper, Table 1: by hand.
    paper = diamonds(linear)
    assert paper[names.index('decoder_depth_1')] == pytest.approx(65.5 - 73.5)
    assert paper[names.index('target_normalized_pixel')] == pytest.approx(73.9 - 73.5)
    assert paper[defaults[0]] == 0
    assert 'less that of the default' in linear.get_xlabel()


def test_without_a_score_of_the_default_nothing_of_ours_is_drawn(in_root):
    suite = load_suite('configs/ablation_suite.py:table')
    results = {run: {} for run in suite.configs}
    results['mask_block_75'] = {0: done(finetune=0.48)}
    finetune, _ = make_figure(suite, results).axes
    assert dots(finetune) == {} and diamonds(finetune)


def test_a_suite_without_the_default_compares_with_its_first_row(in_root, tmp_path):
    rows = ('mask_block_75', 'mask_grid_75')
    suite = load_suite(str(write_suite(tmp_path / 'suite.py', rows=rows, changes={})))
    results = {
        'mask_block_75': {0: done(finetune=0.5, linprobe=0.3)},
        'mask_grid_75': {0: done(finetune=0.6, linprobe=0.2)},
    }
    finetune, linear = make_figure(suite, results).axes
    assert dots(finetune) == pytest.approx({0: 0, 1: 10})
    assert dots(linear) == pytest.approx({0: 0, 1: -10})
    assert diamonds(linear) == pytest.approx({0: 0, 1: 66.0 - 63.9})
    assert 'less that of block 75 %' in finetune.get_xlabel()
    line = draw_plot(suite, tmp_path, results)
    assert line.endswith('plot.png') and (tmp_path / 'plot.png').read_bytes()[1:4] == b'PNG'
