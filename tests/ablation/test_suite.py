"""Suites and settings are read into the configs of all stages, or refused in one sentence."""

import subprocess
import sys

import pytest
from helpers.ablation_suites import write_suite
from helpers.commands import ROOT

from mae_jax.ablation.plot import swept_field
from mae_jax.ablation.run import run_suite
from mae_jax.ablation.suite import load_suite
from mae_jax.config.saved import to_json
from mae_jax.errors import UserError


@pytest.fixture
def in_root(monkeypatch):
    """Runs a test in the directory that holds configs/."""
    monkeypatch.chdir(ROOT)


def load(suite: str, *settings: str):
    return load_suite(f'configs/ablation_suite.py:{suite}', settings)


def test_the_suites_are_the_papers_and_equal_rows_are_run_once(in_root):
    suite = load('table')
    assert len(suite.rows) == 24 and len(suite.configs) == 19
    base = [row for row, run in suite.run_of.items() if run == 'default']
    assert base == [
        'decoder_depth_8',
        'decoder_width_512',
        'encoder_without_mask_tokens',
        'target_pixel',
        'augment_random_crop',
        'mask_random_75',
    ]
    small = load('small')
    assert small.run_of == suite.run_of
    assert len({to_json(stages['pretrain']) for stages in small.configs.values()}) == 19
    assert small.rows['decoder_depth_8'].label == '8 blocks (here model.decoder_depth=4)'
    for name, field in (('mask_ratio', 'mask.ratio'), ('length', 'num_epochs')):
        assert swept_field(load(name)) == field
        assert swept_field(load(f'small_{name}')) == field
    assert swept_field(suite) is None
    epochs = [c['pretrain'].num_epochs for c in load('small_length').configs.values()]
    assert [n / epochs[0] for n in epochs] == [1, 2, 4, 8, 16]


def test_settings_go_to_the_stages_that_have_the_field_and_a_row_wins(in_root, tmp_path):
    settings = (
        'dataset.path=/data/7',
        'mask.ratio=.5',
        'finetune.num_epochs=7',
        'log_every_steps=3',
        'target_dvae.target.tokenizer=dvae.safetensors',
    )
    suite = load('small', *settings)
    stages = {stage.name: stage.config for stage in suite.stages(tmp_path, 'default', 3)}
    assert {stage: config.dataset.path for stage, config in stages.items()} == dict.fromkeys(
        stages, '/data/7'
    )
    assert stages['pretrain'].mask.ratio == 0.5
    assert suite.configs[suite.run_of['mask_random_75']]['pretrain'].mask.ratio == 0.75
    epochs = {stage: config.num_epochs for stage, config in stages.items()}
    unset = load('small').configs['default']
    assert epochs == {stage: config.num_epochs for stage, config in unset.items()} | {'finetune': 7}
    assert {config.log_every_steps for config in stages.values()} == {3}
    assert {config.seed for config in stages.values()} == {3}
    dvae = suite.configs['target_dvae']['pretrain'].target
    assert (dvae.tokenizer, dvae.name) == ('dvae.safetensors', 'token')
    assert stages['pretrain'].target.tokenizer is None
    pretrained = str(tmp_path / 'default' / 'seed3' / 'pretrain')
    assert [c.init_from for c in stages.values()] == [None, pretrained, pretrained]


@pytest.mark.parametrize(
    ('suite', 'settings', 'message'),
    [
        ('configs/none.py', (), 'configs/none.py is no Python file'),
        ('configs/default.py', (), 'configs/default.py has no get_suite'),
        ('configs/ablation_suite.py:huge', (), 'ablation_suite.py:huge is unknown: choose table'),
        ('configs/ablation_suite.py', ('modle.width=3',), "'modle.width'"),
        ('configs/ablation_suite.py', ('linprobe.mask.ratio=.5',), "'mask.ratio'"),
        ('configs/ablation_suite.py', ('batch_size',), '--set batch_size'),
        ('configs/ablation_suite.py', ('batch_size=many',), "'many' is no number"),
        ('configs/ablation_suite.py', ('batch_size=(1, 2)',), 'batch_size=(1, 2) does not work'),
    ],
)
def test_a_mistake_is_one_sentence(in_root, suite, settings, message):
    with pytest.raises(UserError) as error:
        load_suite(suite, settings)
    assert message in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('text', 'message'),
    [('def get_suite(:', 'SyntaxError'), ('import nothing_such', "No module named 'nothing_such'")],
)
def test_a_suite_that_cannot_be_loaded_is_refused_in_one_sentence(in_root, tmp_path, text, message):
    (tmp_path / 'suite.py').write_text(text)
    with pytest.raises(UserError, match=message):
        load_suite(str(tmp_path / 'suite.py'))


def test_unknown_rows_and_fields_of_a_suite_are_refused(in_root, tmp_path):
    with pytest.raises(UserError, match="no row 'decoder_9'.*choose decoder_depth_1"):
        load_suite(str(write_suite(tmp_path / 'a.py', rows=('decoder_9',))))
    with pytest.raises(UserError, match="pretrain: there is no config field 'modle.depth'"):
        load_suite(str(write_suite(tmp_path / 'b.py', pretrain={'modle.depth': 1})))
    with pytest.raises(UserError, match="has no row 'mask_ratio_10': choose decoder_depth_1"):
        run_suite(load('small'), tmp_path / 'out', rows=['mask_ratio_10'])
    assert not (tmp_path / 'out').exists()


def test_the_command_itself_never_imports_jax():
    code = (
        'import sys; import mae_jax.ablation.run; from mae_jax.ablation.suite import load_suite; '
        'load_suite("configs/ablation_suite.py:small"); print("jax" in sys.modules)'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == 'False', done.stderr
