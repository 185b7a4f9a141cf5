"""`mae-jax ablate` runs suites on real digits, in real processes."""

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers.ablation_suites import PRETRAIN, finish, read_table, results, start, write_suite

from mae_jax.ablation.stage import read_metrics
from mae_jax.errors import EXIT_PREEMPTED


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A suite that has run to its end: (its file, its directory, exit status, output)."""
    root = tmp_path_factory.mktemp('ablations')
    suite = write_suite(root / 'suite.py')
    return suite, root / 'out', *finish(suite, root / 'out')


@pytest.mark.slow
def test_a_row_that_fails_is_reported_and_the_others_go_on(finished):
    _, out, status, output = finished
    assert status == 1 and 'Traceback' not in output
    assert re.search(r'decoder_width_128 seed 0 pretrain \.\.\. FAILED .*decoder_width=6', output)
    assert 'decoder_width_128 seed 0 linprobe' not in output
    assert output.strip().splitlines()[-1].startswith('error: 1 stage failed')
    assert re.search(r'target_normalized_pixel seed 0 finetune \.\.\. top-1 \d+\.\d+%', output)
    assert 'eta 0:' in output
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
def test_rows_of_one_config_are_one_run_and_every_stage_has_its_result(finished):
    _, out, _, _ = finished
    runs = sorted(path.name for path in out.iterdir() if path.is_dir())
    assert runs == ['decoder_width_128', 'default', 'target_normalized_pixel']
    stages = results(out)['default']['0']
    assert stages['pretrain']['loss'] > 0 and stages['pretrain']['images_per_second'] > 0
    for stage in ('pretrain', 'linprobe', 'finetune'):
        assert stages[stage]['seconds'] > 0 and stages[stage]['exit_status'] == 0
        assert 'finished at step' in (out / 'default' / 'seed0' / stage / 'log.txt').read_text()
    for stage in ('linprobe', 'finetune'):
        log = (out / 'default' / 'seed0' / stage / 'log.txt').read_text()
        assert 'default/seed0/pretrain' in log and 'loaded: encoder' in log


@pytest.mark.slow
def test_a_finished_suite_is_not_run_again_and_refuses_another_config(finished, tmp_path):
    suite, out, _, _ = finished
    before = modified(out)
    status, output = finish(suite, out, '--rows', 'decoder_depth_1', 'target_normalized_pixel')
    assert status == 0 and '6 of 6 stages are done' in output
    assert modified(out) == before
    other = write_suite(tmp_path / 'other.py', pretrain=PRETRAIN | {'num_steps': 61})
    status, output = finish(other, out)
    assert status == 1 and 'num_steps was 60, now 61' in output and 'Traceback' not in output
    assert modified(out) == before
    status, output = finish(suite, out, '--set', 'log_every_steps=7', '--rows', 'target_pixel')
    assert status == 0, output  # how a run is watched may change


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

    status, output = finish(suite, out)
    assert status == 0, output
    assert '2 of 3 stages are done' in output
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
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == expected, output
    assert 'stopped: run the same command to go on.' in output and 'Traceback' not in output
    (saved,) = (root / 'checkpoints').iterdir()
    assert int(saved.name) >= 5
    assert f'stopped at step {saved.name} and saved' in (root / 'log.txt').read_text()
