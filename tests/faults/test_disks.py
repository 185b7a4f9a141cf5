"""Disks that are full, read-only or give back other bits, under a real run."""

import resource
import shutil
import subprocess

import pytest
from helpers.disks import make_read_only, small_disk
from helpers.faulty_runs import (
    RUN,
    ended,
    finish,
    last_step,
    losses,
    make_greys,
    parameters,
    spawn,
    wait_for,
    wait_until,
)

from mae_jax.errors import EXIT_USER_ERROR

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def arguments(tmp_path_factory):
    return (*RUN, f'--config.dataset.path={make_greys(tmp_path_factory.mktemp("images"))}')


@pytest.fixture(scope='module')
def undisturbed(arguments, tmp_path_factory):
    """The work directory of a run that nothing happened to."""
    root = tmp_path_factory.mktemp('undisturbed')
    finish(*arguments, f'--workdir={root / "run"}', log=root / 'log')
    return root / 'run'


def failed(processes, log):
    """Returns the output of a run that must end with a user error."""
    with ended(processes):
        (status,) = wait_for(processes, 200)
    printed = log.read_text()
    assert status == EXIT_USER_ERROR, printed
    assert 'Traceback' not in printed
    return printed


def goes_on(arguments, workdir, undisturbed, log):
    """The next start goes on from a checkpoint, and ends as the undisturbed run did."""
    printed = finish(*arguments, f'--workdir={workdir}', log=log)
    assert 'resuming at step' in printed
    assert parameters(workdir) == parameters(undisturbed)
    assert losses(workdir) == losses(undisturbed)
    return printed


def test_a_full_disk_is_reported_and_checkpoints_stay_intact(arguments, undisturbed, tmp_path):
    log, disk = tmp_path / 'log', tmp_path / 'disk'
    disk.mkdir()
    with small_disk(disk, '1m'):
        run = (*arguments, f'--workdir={disk / "run"}', '--config.keep_every_steps=4')
        printed = failed(spawn(*run, log=log), log)
        assert 'No space left on device' in printed and 'make room' in printed
        subprocess.run(['mount', '-o', 'remount,size=64m', disk], check=True)
        goes_on(arguments, disk / 'run', undisturbed, log)


def test_a_file_size_limit_is_reported_as_a_full_disk(arguments, undisturbed, tmp_path):
    """What a quota does, and what stands in for a full disk where none can be mounted."""
    log, workdir = tmp_path / 'log', tmp_path / 'run'
    processes = spawn(*arguments, f'--workdir={workdir}', log=log)
    with ended(processes):
        assert wait_until(lambda: last_step(workdir) >= 10, processes)
        resource.prlimit(processes[0].pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
        printed = failed(processes, log)
    assert 'File too large' in printed and 'run the same command again' in printed
    goes_on(arguments, workdir, undisturbed, log)


def test_a_stop_whose_save_fails_does_not_say_that_it_saved(arguments, tmp_path):
    log, workdir = tmp_path / 'log', tmp_path / 'run'
    rare = ('--config.num_steps=100000', '--config.checkpoint_every_steps=100000')
    processes = spawn(*arguments, *rare, f'--workdir={workdir}', log=log)
    with ended(processes):
        assert wait_until(lambda: last_step(workdir) >= 4, processes)
        resource.prlimit(processes[0].pid, resource.RLIMIT_FSIZE, (15_000, 15_000))
        processes[0].terminate()
        printed = failed(processes, log)
    assert 'could not be written' in printed and 'and saved' not in printed


def test_a_disk_that_turns_read_only_is_reported_and_the_run_goes_on_later(
    arguments, undisturbed, tmp_path
):
    log, disk = tmp_path / 'log', tmp_path / 'disk'
    disk.mkdir()
    with small_disk(disk, '64m'):
        processes = spawn(*arguments, f'--workdir={disk / "run"}', log=log)
        with ended(processes):
            assert wait_until(lambda: last_step(disk / 'run') >= 10, processes)
            # Files that are open for writing keep a disk from turning read-only, but for this.
            subprocess.run(['mount', '--bind', disk, disk], check=True)
            try:
                make_unwritable(disk)
                printed = failed(processes, log)
            finally:
                subprocess.run(['umount', '--lazy', disk], check=True)
        assert 'Read-only file system' in printed
        goes_on(arguments, disk / 'run', undisturbed, log)


def make_unwritable(disk):
    subprocess.run(['mount', '-o', 'remount,bind,ro', disk], check=True)


def test_a_directory_on_a_read_only_disk_is_refused_at_the_start(arguments, tmp_path):
    log, disk = tmp_path / 'log', tmp_path / 'disk'
    disk.mkdir()
    with small_disk(disk):
        make_read_only(disk)
        printed = failed(spawn(*arguments, f'--workdir={disk / "run"}', log=log), log)
        assert 'choose another directory' in printed


def truncate(step):
    file = largest_file(step)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return 'bytes instead of'


def flip_a_bit(step):
    file = largest_file(step)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)
    return 'another checksum'


def lose_a_file(step):
    largest_file(step).unlink()
    return 'is missing or cannot be read'


def delete_it(step):
    shutil.rmtree(step)
    return ''


def largest_file(step):
    return max((step / 'state').rglob('d/*'), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize('damage', [truncate, flip_a_bit, lose_a_file, delete_it])
def test_a_damaged_newest_checkpoint_is_passed_over(arguments, undisturbed, tmp_path, damage):
    workdir = shutil.copytree(undisturbed, tmp_path / 'run')
    message = damage(workdir / 'checkpoints' / '48')
    printed = goes_on(arguments, workdir, undisturbed, tmp_path / 'log')
    assert message in printed and 'resuming at step 44' in printed


def test_where_no_checkpoint_is_whole_nothing_is_overwritten(arguments, undisturbed, tmp_path):
    workdir, log = shutil.copytree(undisturbed, tmp_path / 'run'), tmp_path / 'log'
    for step in (44, 48):
        flip_a_bit(workdir / 'checkpoints' / str(step))
    before = {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}
    printed = failed(spawn(*arguments, f'--workdir={workdir}', log=log), log)
    assert 'No checkpoint in' in printed and 'is intact (tried step 44, 48)' in printed
    after = {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}
    assert {p for p in before if before[p] != after.get(p)} <= {workdir / '.lock'}
