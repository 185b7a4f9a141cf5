"""The table of an ablation: means, ranges, failures, beside the paper's figures."""

import re

import pytest
from helpers.ablation_suites import read_table
from helpers.commands import ROOT

from mae_jax.ablation.report import format_table
from mae_jax.ablation.suite import load_suite


@pytest.fixture
def in_root(monkeypatch):
    """Runs a test in the directory that holds configs/."""
    monkeypatch.chdir(ROOT)


def test_the_table_gives_means_and_ranges_and_shows_what_failed_or_is_to_come(in_root):
    suite = load_suite('configs/ablation_suite.py:table')
    done, failed = {'status': 'done'}, {'status': 'failed', 'error': 'no', 'exit_status': 3}
    results = {run: {} for run in suite.configs}
    results['default'] = {
        seed: {'finetune': done | {'top1': top1}, 'linprobe': done | {'top1': top1 / 2}}
        for seed, top1 in ((0, 0.51), (1, 0.5), (2, 0.54))
    }
    results['decoder_depth_1'] = {0: {'pretrain': failed}}
    results['mask_grid_75'] = {0: {'finetune': failed, 'linprobe': done | {'top1': 0.25}}, 1: {}}
    results['target_pca'] = {0: {'finetune': done | {'top1': 0.1}}, 1: {'pretrain': failed}}
    text = format_table(suite, results)
    table = read_table(text)
    assert len(table) == len(suite.rows)
    ours = ['51.7 (50.0 - 54.0)', '25.8 (25.0 - 27.0)', '3']
    for label in ('8 blocks', '512-d', 'encoder w/o [M]', 'crop, rand size', 'random 75 %'):
        assert table[label] == [*ours, '84.9', '73.5']
    assert table['1 block'] == ['failed', 'failed', '0', '84.8', '65.5']
    assert table['2 blocks'] == ['...', '...', '0', '84.9', '70.0']
    assert table['grid 75 %'] == ['failed', '25.0', '1', '84.0', '66.0']
    assert table['PCA'] == ['10.0, 1 failed', 'failed', '1', '84.6', '72.3']
    assert 'decoder_depth_1/seed0/pretrain (exit status 3): no' in text
    sections = re.findall('^## (.*)$', text, re.MULTILINE)
    assert sections[0] == 'Table 1a: decoder depth' and sections[5] == 'Table 1f: mask sampling'
