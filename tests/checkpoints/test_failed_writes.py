"""A run that is killed while it writes, or cannot write, loses no earlier checkpoint."""

import contextlib
import gc
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.checkpoints import assert_same
from helpers.disks import files_no_larger_than, make_read_only, small_disk

from mae_jax.checkpoints.integrity import CHECKSUMS
from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.errors import UserError

# A failed write leaves coroutines of Orbax behind, which only the command line silences.
pytestmark = pytest.mark.filterwarnings(
    'ignore:coroutine',
    'ignore::ResourceWarning',
    'ignore::pytest.PytestUnraisableExceptionWarning',
)


@pytest.fixture
def collect_coroutines():
    """Makes such warnings appear in the test that caused them."""
    yield
    gc.collect()


KILL_AT = {
    'directory': '3.orbax*',  # the temporary directory of step 3 exists
    'arrays': '3.orbax*/state*/ocdbt*/d/*',  # it contains arrays
    'listed': '3.orbax*/state*/checksums.0.txt',  # it contains the checksums of the arrays
    'checksums': f'3.orbax*/{CHECKSUMS}',  # it contains the checksums
    'rename': '3',  # it has its final name, and step 2 is to be deleted
}
"""Moment -> the file that exists from this moment on."""

WRITER = """
import os, signal, sys
from pathlib import Path
import jax.numpy as jnp
from mae_jax.checkpoints.manager import Checkpoints

def write(directory, pattern):
    '''Saves three steps; is killed at the first file operation after `pattern` exists.'''
    is_looking = False
    def look(event, arguments):
        nonlocal is_looking
        if event.startswith(('open', 'os.', 'shutil.')) and not is_looking:
            is_looking = True  # looking is a file operation, too
            if any(directory.glob(pattern)):
                os.kill(os.getpid(), signal.SIGKILL)
            is_looking = False
    with Checkpoints(directory, keep_last=1) as checkpoints:
        for step in range(1, 4):
            if step == 3:
                checkpoints.wait()
                sys.addaudithook(look)
            checkpoints.save(step, {'params': jnp.full(4_000_000, step)}, {'step': step})

for directory, pattern in zip(sys.argv[1::2], sys.argv[2::2]):
    if (child := os.fork()) == 0:  # before JAX starts any threads
        write(Path(directory), pattern)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, directory
"""


@pytest.fixture(scope='module')
def killed(tmp_path_factory):
    """Moment -> the directory of a run that was killed at this moment."""
    directories = {moment: tmp_path_factory.mktemp(moment) for moment in KILL_AT}
    arguments = [word for moment in KILL_AT for word in (directories[moment], KILL_AT[moment])]
    subprocess.run([sys.executable, '-c', WRITER, *arguments], check=True)
    return directories


@pytest.mark.slow
@pytest.mark.parametrize('moment', KILL_AT)
def test_a_run_killed_while_it_writes_leaves_an_intact_checkpoint(killed, moment):
    directory: Path = killed[moment]
    assert any(directory.glob(KILL_AT[moment]))
    with Checkpoints(directory, keep_last=1) as checkpoints:
        state, step, meta = checkpoints.restore({'params': jnp.full(4_000_000, 0)})
        assert step == (3 if moment == 'rename' else 2)
        assert meta == {'step': step}
        assert (np.asarray(state['params']) == step).all()
        checkpoints.save(step + 9, state, {})
    assert [path.name for path in directory.iterdir()] == [str(step + 9)]  # nothing is left over


@pytest.mark.usefixtures('collect_coroutines')
@pytest.mark.parametrize('method', ['save', 'wait', 'close'])
def test_a_failed_write_is_reported_and_earlier_checkpoints_are_intact(tmp_path, method):
    large = {'x': jax.random.normal(jax.random.key(0), (1_000_000,))}
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(tmp_path, keep_last=1))
        checkpoints.save(1, large, {})
        checkpoints.wait()
        stack.enter_context(files_no_larger_than(100_000))
        checkpoints.save(2, large, {})
        with pytest.raises(UserError, match=f'step 2 .* {tmp_path}.*make room') as error:
            if method == 'save':
                checkpoints.save(3, large, {})
            else:
                getattr(checkpoints, method)()
        assert 'Traceback' not in str(error.value)
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        state, step, _ = checkpoints.restore(large)
        assert step == 1
        assert_same(state, large)
        checkpoints.save(2, large, {})
    assert [path.name for path in tmp_path.iterdir()] == ['2']


@pytest.mark.usefixtures('collect_coroutines')
def test_writes_that_fail_in_every_file_end_a_run_with_one_message(tmp_path):
    """Orbax keeps an error for each of its background writers, and raises them one at a time."""
    state, logged = {'x': jnp.ones(3)}, []
    with (
        pytest.raises(UserError, match='step 1 .*File too large.*make room'),
        Checkpoints(tmp_path, log=logged.append) as checkpoints,
        files_no_larger_than(0),
    ):
        checkpoints.save(1, state, {})
        checkpoints.save(2, state, {})
    assert not logged


@pytest.mark.usefixtures('collect_coroutines')
def test_a_full_disk_is_reported_by_its_name(tmp_path):
    state = {'x': jax.random.normal(jax.random.key(0), (300_000,))}
    with small_disk(tmp_path), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.save(2, state, {})
        with pytest.raises(UserError, match='No space left'):
            checkpoints.wait()
        assert_same(checkpoints.restore(state)[0], state)


@pytest.mark.usefixtures('collect_coroutines')
def test_a_read_only_disk_is_reported(tmp_path):
    state = {'x': jnp.ones(3)}
    before = set(threading.enumerate())
    with small_disk(tmp_path):
        with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
            checkpoints.save(1, state, {})
            checkpoints.wait()
            make_read_only(tmp_path)
            with pytest.raises(UserError, match=r'(?i)read-only file system.*make it writable'):
                checkpoints.save(2, state, {})
                checkpoints.wait()
            assert checkpoints.restore(state)[1] == 1
        with pytest.raises(UserError, match='writable'):
            Checkpoints(tmp_path / 'another')
    remaining = {t for t in threading.enumerate() if not t.daemon} - before
    assert not remaining  # they would keep the process from ending


def test_orbax_prints_nothing_once_it_is_silenced(copied):
    script = """
import logging, sys
logging.basicConfig(level=logging.INFO)
import numpy as np
from absl import logging as absl_logging
absl_logging.set_verbosity(absl_logging.INFO)
from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.checkpoints.weights import restore_weights
from mae_jax.runtime.library_noise import silence_libraries
silence_libraries()
with Checkpoints(sys.argv[1], keep_last=1) as checkpoints:
    checkpoints.save(4, {'params': {'x': np.ones(3)}}, {})
    checkpoints.restore({'params': {'x': np.ones(3)}})
restore_weights(sys.argv[1])
absl_logging.info('a message of our own')
"""
    run = subprocess.run(
        [sys.executable, '-c', script, copied], capture_output=True, text=True, check=True
    )
    assert 'a message of our own' in run.stderr
    assert 'orbax' not in (run.stdout + run.stderr).lower()
