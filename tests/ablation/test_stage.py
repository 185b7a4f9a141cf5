"""A stage's result is read from its directory, and its work is not lost to another config."""

import json

import pytest
from helpers.commands import ROOT

from mae_jax.ablation.run import run_suite
from mae_jax.ablation.stage import has_begun, read_metrics, refuse_changed
from mae_jax.ablation.suite import load_suite
from mae_jax.config.saved import to_json
from mae_jax.errors import UserError


@pytest.fixture
def in_root(monkeypatch):
    """Runs a test in the directory that holds configs/."""
    monkeypatch.chdir(ROOT)


def load(suite: str, *settings: str):
    return load_suite(f'configs/ablation_suite.py:{suite}', settings)


def test_another_config_is_refused_only_where_work_would_be_lost(in_root, tmp_path):
    stage, *_ = load('small', 'num_epochs=8.0').stages(tmp_path, 'default', 0)
    longer, *_ = load('small', 'num_epochs=9.0').stages(tmp_path, 'default', 0)
    stage.directory.mkdir(parents=True)
    (stage.directory / 'asked.json').write_text(to_json(stage.config))
    refuse_changed(longer)
    (stage.directory / 'checkpoints' / '10').mkdir(parents=True)
    assert has_begun(stage)
    refuse_changed(stage)
    with pytest.raises(UserError, match=r'num_epochs was 8\.0, now 9\.0.*remove \S*seed0\.$'):
        refuse_changed(longer)


def test_the_last_accuracy_counts_not_the_best(tmp_path):
    path = tmp_path / 'metrics.jsonl'
    lines = [{'step': 1, 'loss': 2.0, 'images_per_second': 9.0}, {'step': 1, 'eval/top1': 0.8}]
    lines += [{'step': 2, 'loss': 1.0, 'images_per_second': 11.0}, {'step': 2, 'eval/top1': 0.7}]
    path.write_text('\n'.join(map(json.dumps, lines)))
    assert read_metrics(path, 'finetune') == {'top1': 0.7, 'images_per_second': 10.0}
    assert read_metrics(path, 'pretrain') == {'loss': 1.0, 'images_per_second': 10.0}
    with pytest.raises(KeyError, match='eval/top1'):
        path.write_text(json.dumps(lines[0]))
        read_metrics(path, 'linprobe')


def test_a_probe_has_its_accuracies_from_its_results(tmp_path):
    path = tmp_path / 'results.jsonl'
    lines = [
        {'pool': 'mean', 'linear': 0.5, 'knn': 0.4},
        {'pool': 'mean', 'linear': 0.7, 'knn': 0.6},
    ]
    path.write_text('\n'.join(map(json.dumps, lines)))
    assert read_metrics(path, 'probe') == {'knn': 0.6, 'linear': 0.7}


def test_another_starting_point_is_refused_but_that_of_the_pretraining_beside_it(in_root, tmp_path):
    stages = load('small').stages(tmp_path / 'old', 'default', 0)
    moved = load('small').stages(tmp_path / 'new', 'default', 0)
    given = load('small', 'pretrain.init_from=runs/other').stages(tmp_path / 'new', 'default', 0)
    for before, now in zip(stages, moved, strict=True):
        (now.directory / 'checkpoints' / '10').mkdir(parents=True)
        (now.directory / 'asked.json').write_text(to_json(before.config))
        refuse_changed(now)
    with pytest.raises(UserError, match="init_from was unset, now 'runs/other'"):
        refuse_changed(given[0])


def test_stages_of_a_pretraining_that_is_gone_are_not_reported_for_the_next(in_root, tmp_path):
    suite = load('small')
    _, probe, _ = suite.stages(tmp_path, 'default', 0)
    probe.directory.mkdir(parents=True)
    (probe.directory / 'result.json').write_text('{"status": "done", "top1": 0.5}')
    with pytest.raises(UserError, match=r'no longer exists: remove \S*default/seed0\.'):
        run_suite(suite, tmp_path, rows=['target_pixel'])
