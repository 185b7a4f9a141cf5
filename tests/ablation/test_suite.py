"""`mae-jax ablate`: real suites on real digits, in real processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.commands import ROOT
from helpers.tiny_runs import SIZES

from mae_jax.ablation import report as ablation_report
from mae_jax.ablation.stage import has_begun, read_metrics, refuse_changed
from mae_jax.ablation.suite import ablate, make_plan
from mae_jax.config.saved import to_json
from mae_jax.errors import EXIT_PREEMPTED, UserError

COMMON = {
    'model.dtype': 'float32',
    'dataset.threads': 2,
    'dataset.eval_crop_share': 1.0,
    'dataset.flip': False,
    'batch_size': 16,
    'num_steps': 60,
    'log_every_steps': 1,
    'checkpoint_every_steps': 10,
    'keep_last': 1,
}
PRETRAIN = COMMON | SIZES
PRETRAIN |= {'model.depth': 1, 'model.decoder_width': 16, 'model.decoder_depth': 1}
PRETRAIN |= {'model.decoder_heads': 4, 'eval_every_steps': 0, 'image_every_steps': 0}
FINETUNE = COMMON | {'model.drop_path': 0.0, 'mix.mixup': 0.0, 'mix.cutmix': 0.0}
FINETUNE |= {'dataset.augment': '', 'dataset.erase': 0.0, 'eval_every_steps': 30}
LINPROBE = COMMON | {'cache_features': True, 'num_steps': 30}

ROWS = ('decoder_depth_1', 'target_pixel', 'decoder_width_128', 'target_normalized_pixel')
"""Two that are the same run; one that cannot be; another. None is the paper's own base here."""
CHANGES = {'decoder_width_128': {'model.decoder_width': 6}}  # four heads do not divide it


def write_suite(path: Path, rows=ROWS, changes=CHANGES, pretrain=PRETRAIN) -> Path:
    """A suite of one's own, as a user writes it."""
    stages = {'pretrain': pretrain, 'linprobe': LINPROBE, 'finetune': FINETUNE}
    fields = {'rows': rows, 'seeds': (0,), 'changes': changes, **stages}
    lines = [f'    suite.{name} = {value!r}' for name, value in fields.items()]
    head = ['from ml_collections import ConfigDict', '', '', 'def get_suite():']
    head += ['    suite = ConfigDict(convert_dict=False)']
    path.write_text('\n'.join([*head, *lines, '    return suite', '']))
    return path


def start(suite: Path, out: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, '-m', 'mae_jax', 'ablate', f'--suite={suite}', f'--out={out}', *arguments],
        cwd=ROOT,
        env=os.environ | {'XLA_FLAGS': '--xla_backend_optimization_level=0'},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would what they start, as these tests.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(suite: Path, out: Path, *arguments: str) -> tuple[int, str]:
    process = start(suite, out, *arguments)
    told, _ = process.communicate(timeout=600)
    return process.returncode, told


def read_table(text: str) -> dict[str, list[str]]:
    """Label of a row -> its cells, of every Markdown table in the text."""
    lines = [line.strip('|').split('|') for line in text.splitlines() if line.startswith('|')]
    cells = [[cell.strip() for cell in line] for line in lines]
    assert {len(line) for line in cells} == {6}
    return {label: rest for label, *rest in cells if label != 'row' and set(label) != {'-'}}


def results(out: Path) -> dict:
    return json.loads((out / 'results.json').read_text())['runs']


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A suite that has run to its end: (its file, its directory, exit status, what was said)."""
    root = tmp_path_factory.mktemp('ablations')
    suite = write_suite(root / 'suite.py')
    return suite, root / 'out', *finish(suite, root / 'out')


@pytest.mark.slow
def test_a_row_that_fails_is_reported_and_the_others_go_on(finished):
    _, out, status, told = finished
    assert status == 1 and 'Traceback' not in told
    assert re.search(r'decoder_width_128 seed 0 pretrain \.\.\. FAILED .*decoder_width=6', told)
    assert 'decoder_width_128 seed 0 linprobe' not in told
    assert told.strip().splitlines()[-1].startswith('error: 1 stage(s) failed')
    assert re.search(r'target_normalized_pixel seed 0 finetune \.\.\. top-1 \d+\.\d+%', told)
    assert 'eta 0:' in told
    table = read_table((out / 'table.md').read_text())
    assert table.pop('128-d (here model.decoder_width=6)') == [
        'failed',
        'failed',
        '0',
        '84.9',
        '69.1',
    ]
    # What the runs themselves wrote, read without the command.
    written = {
        stage: read_metrics(out / 'default' / 'seed0' / stage / 'metrics.jsonl', stage)['top1']
        for stage in ('finetune', 'linprobe')
    }
    ours = [f'{100 * written[stage]:.1f}' for stage in ('finetune', 'linprobe')]
    assert table['1 block'] == [*ours, '1', '84.8', '65.5']
    assert table['pixel (w/o norm)'] == [*ours, '1', '84.9', '73.5']
    assert table['pixel (w/ norm)'][2:] == ['1', '85.4', '73.9']
    assert 'decoder_width_128/seed0/pretrain (exit status 1)' in (out / 'table.md').read_text()
    assert (out / 'plot.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.slow
def test_rows_of_one_config_are_one_run_and_every_stage_says_what_it_took(finished):
    _, out, _, _ = finished
    runs = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert runs == ['decoder_width_128', 'default', 'target_normalized_pixel']
    found = results(out)['default']['0']
    assert found['pretrain']['loss'] > 0 and found['pretrain']['images_per_second'] > 0
    for stage in ('pretrain', 'linprobe', 'finetune'):
        assert found[stage]['seconds'] > 0 and found[stage]['exit_status'] == 0
        assert 'finished at step' in (out / 'default' / 'seed0' / stage / 'log.txt').read_text()
    for stage in ('linprobe', 'finetune'):
        log = (out / 'default' / 'seed0' / stage / 'log.txt').read_text()
        assert 'default/seed0/pretrain' in log and 'loaded: encoder' in log


@pytest.mark.slow
def test_a_finished_suite_is_not_run_again_and_refuses_another_config(finished, tmp_path):
    suite, out, _, _ = finished
    before = modified(out)
    status, told = finish(suite, out, '--rows', 'decoder_depth_1', 'target_normalized_pixel')
    assert status == 0 and '6 of 6 stages are done' in told
    assert modified(out) == before
    other = write_suite(tmp_path / 'other.py', pretrain=PRETRAIN | {'num_steps': 61})
    status, told = finish(other, out)
    assert status == 1 and 'num_steps was 60, now 61' in told and 'Traceback' not in told
    assert modified(out) == before
    status, told = finish(suite, out, '--set', 'log_every_steps=7', '--rows', 'target_pixel')
    assert status == 0, told  # how a run is watched may change


def modified(out: Path) -> dict[str, int]:
    """File of a run -> when it was last written."""
    files = (path for run in out.iterdir() if run.is_dir() for path in run.rglob('*'))
    return {str(path): path.stat().st_mtime_ns for path in files if path.is_file()}


def reached(metrics: Path, step: int) -> bool:
    try:
        return f'"step": {step},' in metrics.read_text()
    except OSError:
        return False


def start_until(reached, suite: Path, out: Path) -> subprocess.Popen:
    process = start(suite, out)
    deadline = time.monotonic() + 300
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return process


def gone(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] == 'Z'
    except FileNotFoundError:
        return True


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc').exists(), reason='looks for the process in /proc')
def test_a_sigkill_takes_the_stage_along_and_the_same_command_goes_on(finished, tmp_path):
    suite, out = write_suite(tmp_path / 'suite.py', rows=('target_pixel',)), tmp_path / 'out'
    root = out / 'default' / 'seed0'
    process = start_until(lambda: reached(root / 'finetune' / 'metrics.jsonl', 25), suite, out)
    child = int((root / 'finetune' / '.lock').read_text())
    assert child != process.pid and not gone(child)
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while not gone(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    done = {f: t for f, t in modified(out).items() if 'finetune' not in f}
    assert not (root / 'finetune' / 'result.json').exists()

    status, told = finish(suite, out)
    assert status == 0, told
    assert '2 of 3 stages are done' in told
    assert {f: t for f, t in modified(out).items() if 'finetune' not in f} == done
    assert 'resuming at step' in (root / 'finetune' / 'log.txt').read_text()
    ours, undisturbed = (results(o)['default']['0'] for o in (out, finished[1]))
    assert ours['finetune']['resumed'] and not ours['linprobe']['resumed']
    for stage in ('linprobe', 'finetune'):
        assert ours[stage]['top1'] == undisturbed[stage]['top1']
    assert ours['pretrain']['loss'] == undisturbed['pretrain']['loss']


@pytest.mark.slow
@pytest.mark.parametrize(
    ('number', 'expected'), [(signal.SIGTERM, EXIT_PREEMPTED), (signal.SIGINT, 130)]
)
def test_a_stage_that_is_stopped_saves_before_the_command_ends(tmp_path, number, expected):
    longer = PRETRAIN | {'num_steps': 10**6, 'checkpoint_every_steps': 10**6}
    suite = write_suite(tmp_path / 'suite.py', rows=('target_pixel',), pretrain=longer)
    root = tmp_path / 'out' / 'default' / 'seed0' / 'pretrain'
    process = start_until(lambda: reached(root / 'metrics.jsonl', 5), suite, tmp_path / 'out')
    try:
        process.send_signal(number)
        if number == signal.SIGTERM:
            time.sleep(0.02)
            process.send_signal(number)  # `timeout` and schedulers may say it twice
        told, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == expected, told
    assert 'stopped: run the same command to go on.' in told and 'Traceback' not in told
    (saved,) = (root / 'checkpoints').iterdir()
    assert int(saved.name) >= 5
    assert f'stopped at step {saved.name} and saved' in (root / 'log.txt').read_text()


def plan_of(suite: str, *settings: str):
    return make_plan(f'configs/ablation_suite.py:{suite}', settings)


@pytest.fixture
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_suites_are_the_papers_and_equal_rows_are_run_once(here):
    plan = plan_of('table')
    assert len(plan.rows) == 24 and len(plan.configs) == 19
    base = [row for row, run in plan.run_of.items() if run == 'default']
    assert base == [
        'decoder_depth_8',
        'decoder_width_512',
        'encoder_without_mask_tokens',
        'target_pixel',
        'augment_random_crop',
        'mask_random_75',
    ]
    small = plan_of('small')
    assert small.run_of == plan.run_of
    assert len({to_json(stages['pretrain']) for stages in small.configs.values()}) == 19
    assert small.rows['decoder_depth_8'].label == '8 blocks (here model.decoder_depth=4)'
    for suite, field in (('mask_ratio', 'mask.ratio'), ('length', 'num_epochs')):
        assert ablation_report.swept(plan_of(suite)) == field
        assert ablation_report.swept(plan_of(f'small_{suite}')) == field
    assert ablation_report.swept(plan) is None
    epochs = [c['pretrain'].num_epochs for c in plan_of('small_length').configs.values()]
    assert [n / epochs[0] for n in epochs] == [1, 2, 4, 8, 16]


def test_settings_go_to_the_stages_that_have_the_field_and_a_row_wins(here, tmp_path):
    settings = (
        'dataset.path=/data/7',
        'mask.ratio=.5',
        'finetune.num_epochs=7',
        'log_every_steps=3',
        'target_dvae.target.tokenizer=dvae.safetensors',
    )
    plan = plan_of('small', *settings)
    stages = {stage.name: stage.config for stage in plan.stages(tmp_path, 'default', 3)}
    assert {stage: config.dataset.path for stage, config in stages.items()} == dict.fromkeys(
        stages, '/data/7'
    )
    assert stages['pretrain'].mask.ratio == 0.5
    assert plan.configs[plan.run_of['mask_random_75']]['pretrain'].mask.ratio == 0.75
    epochs = {stage: config.num_epochs for stage, config in stages.items()}
    unset = plan_of('small').configs['default']
    assert epochs == {stage: config.num_epochs for stage, config in unset.items()} | {'finetune': 7}
    assert {config.log_every_steps for config in stages.values()} == {3}
    assert {config.seed for config in stages.values()} == {3}
    dvae = plan.configs['target_dvae']['pretrain'].target
    assert (dvae.tokenizer, dvae.name) == ('dvae.safetensors', 'token')
    assert stages['pretrain'].target.tokenizer is None
    pretrained = str(tmp_path / 'default' / 'seed3' / 'pretrain')
    assert [c.init_from for c in stages.values()] == [None, pretrained, pretrained]


@pytest.mark.parametrize(
    ('suite', 'settings', 'told'),
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
def test_a_mistake_is_one_sentence(here, suite, settings, told):
    with pytest.raises(UserError) as error:
        make_plan(suite, settings)
    assert told in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('text', 'told'),
    [('def get_suite(:', 'SyntaxError'), ('import nothing_such', "No module named 'nothing_such'")],
)
def test_a_suite_that_cannot_be_loaded_is_told_in_one_sentence(here, tmp_path, text, told):
    (tmp_path / 'suite.py').write_text(text)
    with pytest.raises(UserError, match=told):
        make_plan(str(tmp_path / 'suite.py'))


def test_unknown_rows_and_fields_of_a_suite_are_told(here, tmp_path):
    with pytest.raises(UserError, match="no row 'decoder_9'.*choose decoder_depth_1"):
        make_plan(str(write_suite(tmp_path / 'a.py', rows=('decoder_9',))))
    with pytest.raises(UserError, match="pretrain: there is no config field 'modle.depth'"):
        make_plan(str(write_suite(tmp_path / 'b.py', pretrain={'modle.depth': 1})))
    with pytest.raises(UserError, match="has no row 'mask_ratio_10': choose decoder_depth_1"):
        ablate(plan_of('small'), tmp_path / 'out', rows=['mask_ratio_10'])
    assert not (tmp_path / 'out').exists()


def test_what_came_of_a_pretraining_that_is_gone_is_not_reported_as_if_of_the_next(here, tmp_path):
    plan = plan_of('small')
    _, probe, _ = plan.stages(tmp_path, 'default', 0)
    probe.directory.mkdir(parents=True)
    (probe.directory / 'result.json').write_text('{"status": "done", "top1": 0.5}')
    with pytest.raises(UserError, match=r'no longer there: remove \S*default/seed0\.'):
        ablate(plan, tmp_path, rows=['target_pixel'])


def test_another_config_is_refused_only_where_work_would_be_lost(here, tmp_path):
    stage, *_ = plan_of('small', 'num_epochs=8.0').stages(tmp_path, 'default', 0)
    longer, *_ = plan_of('small', 'num_epochs=9.0').stages(tmp_path, 'default', 0)
    stage.directory.mkdir(parents=True)
    (stage.directory / 'asked.json').write_text(to_json(stage.config))
    refuse_changed(longer)
    (stage.directory / 'checkpoints' / '10').mkdir(parents=True)
    assert has_begun(stage)
    refuse_changed(stage)
    with pytest.raises(UserError, match=r'num_epochs was 8\.0, now 9\.0.*remove \S*seed0\.$'):
        refuse_changed(longer)


def test_the_table_gives_means_and_ranges_and_says_what_failed_or_is_to_come(here):
    plan = plan_of('table')
    done, failed = {'status': 'done'}, {'status': 'failed', 'error': 'no', 'exit_status': 3}
    found = {run: {} for run in plan.configs}
    found['default'] = {
        seed: {'finetune': done | {'top1': top1}, 'linprobe': done | {'top1': top1 / 2}}
        for seed, top1 in ((0, 0.51), (1, 0.5), (2, 0.54))
    }
    found['decoder_depth_1'] = {0: {'pretrain': failed}}
    found['mask_grid_75'] = {0: {'finetune': failed, 'linprobe': done | {'top1': 0.25}}, 1: {}}
    found['target_pca'] = {0: {'finetune': done | {'top1': 0.1}}, 1: {'pretrain': failed}}
    text = ablation_report.table(plan, found)
    table = read_table(text)
    assert len(table) == len(plan.rows)
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


def test_the_command_itself_never_imports_jax(tmp_path):
    code = (
        'import sys; from mae_jax.commands import ablate; from mae_jax.ablate import make_plan; '
        'make_plan("configs/ablation_suite.py:small"); print("jax" in sys.modules)'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == 'False', done.stderr
