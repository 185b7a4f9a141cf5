import contextlib
import gc
import logging
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.disks import files_no_larger_than, make_read_only, small_disk
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from mae_jax.checkpoints import integrity as checksums
from mae_jax.checkpoints import manager as checkpoint
from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.checkpoints.weights import restore_weights
from mae_jax.errors import UserError

# A failed write leaves coroutines of Orbax's behind; outside of pytest the package says nothing.
pytestmark = pytest.mark.filterwarnings('ignore:coroutine', 'ignore::ResourceWarning')


@pytest.fixture(autouse=True)
def collect_coroutines():
    yield
    gc.collect()


def make_state(seed=0, rows=16):
    """Parameters and optimiser state like a run's: nested, empty parts, several dtypes."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        'encoder': {'kernel': jax.random.normal(keys[0], (rows, 4))},
        'decoder': {'bias': jax.random.normal(keys[1], (3,)).astype(jnp.bfloat16)},
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    opt_state = optimizer.init(params)
    _, opt_state = optimizer.update(jax.tree.map(jnp.ones_like, params), opt_state, params)
    return {'params': params, 'opt_state': opt_state, 'step': jnp.int32(seed), 'model_state': {}}


def assert_same(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for got, want in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        assert got.dtype == want.dtype
        assert np.asarray(got).tobytes() == np.asarray(want).tobytes()


def flip_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << 3
    path.write_bytes(content)


def files_of(step_directory):
    return sorted(path for path in step_directory.rglob('*') if path.is_file())


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
    """A directory with whole checkpoints of steps 1 and 2, to be copied and not changed."""
    directory = tmp_path_factory.mktemp('two') / 'checkpoints'
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, make_state(1), {'seed': 1})
        checkpoints.save(2, make_state(2), {'seed': 2})
    return directory


@pytest.fixture
def copied(two_steps, tmp_path):
    return shutil.copytree(two_steps, tmp_path / 'checkpoints')


def test_a_round_trip_keeps_every_bit_and_the_meta(tmp_path):
    meta = {'seed': 3, 'batch_size': 8, 'dataset': {'name': 'digits', 'examples': 1797}}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(make_state()) is None
        assert checkpoints.read_meta() is None
        checkpoints.save(7, make_state(3), meta)
        state, step, restored_meta = checkpoints.restore(make_state())
        assert checkpoints.read_meta(7) == restored_meta == meta
    assert step == 7
    assert_same(state, make_state(3))


def test_a_state_saved_from_eight_devices_restores_on_eight_two_and_one(tmp_path):
    def layout(fsdp):
        shape, devices = (1, fsdp), jax.devices()[:fsdp]
        mesh = jax.make_mesh(
            shape, ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2, devices=devices
        )
        sharded = NamedSharding(mesh, PartitionSpec('fsdp'))
        whole = NamedSharding(mesh, PartitionSpec())
        return jax.tree.map(lambda x: sharded if x.ndim == 2 else whole, make_state())

    expected = make_state(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, jax.device_put(expected, layout(8)), {})
        checkpoints.wait()
        single = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), expected)
        for shardings in (layout(8), layout(2), single):
            target = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                expected,
                shardings,
            )
            state, _, _ = checkpoints.restore(target)
            assert_same(state, expected)
            assert jax.tree.map(lambda x: x.sharding, state) == shardings


def test_a_step_that_overwrites_its_donated_state_does_not_reach_the_checkpoint(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = {'params': jnp.zeros(2_000_000)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state, {})
        for _ in range(3):
            state = step(state)
        jax.block_until_ready(state)
        restored, _, _ = checkpoints.restore(state)
    assert not np.asarray(restored['params']).any()


def test_weights_are_read_without_knowing_the_model_and_nothing_is_touched(copied):
    leftover = copied / '3.orbax-checkpoint-tmp'
    leftover.mkdir()
    params, _, step, meta = restore_weights(copied)
    assert (step, meta) == (2, {'seed': 2})
    assert_same(params, jax.tree.map(np.asarray, make_state(2)['params']))
    assert isinstance(params['encoder']['kernel'], np.ndarray)
    assert leftover.exists()


def test_reading_weights_where_there_are_none_is_an_error(tmp_path):
    with pytest.raises(UserError, match='no checkpoint'):
        restore_weights(tmp_path / 'nothing')


def test_a_state_of_another_shape_is_refused(copied):
    with Checkpoints(copied) as checkpoints, pytest.raises(UserError, match='does not fit'):
        checkpoints.restore(make_state(rows=32))


def test_a_flipped_bit_in_any_file_falls_back_to_the_previous_step(copied):
    names = [path.relative_to(copied / '2') for path in files_of(copied / '2')]
    assert len(names) > 8
    for name in names:
        said = []
        original = (copied / '2' / name).read_bytes()
        flip_bit(copied / '2' / name)
        with Checkpoints(copied, log=said.append) as checkpoints:
            state, step, meta = checkpoints.restore(make_state())
        assert_same(state, make_state(step))
        if str(name) in checksums.COMMIT_MARKERS:  # they hold nothing of the run
            assert step == 2
        else:
            assert (step, meta) == (1, {'seed': 1})
            assert 'step 2' in said[0]
            assert str(name) in said[0]
            assert 'step 1' in said[1]
        (copied / '2' / name).write_bytes(original)


def test_a_missing_or_truncated_file_falls_back_and_is_named(copied):
    largest = max(files_of(copied / '2' / 'state'), key=lambda path: path.stat().st_size)
    whole = largest.read_bytes()
    said = []
    with Checkpoints(copied, log=said.append) as checkpoints:
        largest.write_bytes(whole[:-1])
        assert checkpoints.restore(make_state())[1] == 1
        assert f'{largest.name} has {len(whole) - 1} bytes instead of {len(whole)}' in said[0]
        largest.unlink()
        assert checkpoints.restore(make_state())[1] == 1
        assert f'{largest.name} is missing' in said[2]


@pytest.mark.parametrize('content', [None, b'', b'12345678', b'00000001\n{}'])
def test_without_a_readable_list_of_checksums_a_step_is_not_whole(copied, content):
    listed = copied / '2' / checksums.CHECKSUMS
    listed.unlink()
    if content is not None:
        listed.write_bytes(content)
    said = []
    with Checkpoints(copied, log=said.append) as checkpoints:
        assert checkpoints.restore(make_state())[1] == 1
        assert checkpoints.steps() == ([1] if content is None else [1, 2])
    assert checksums.CHECKSUMS in said[0]


@pytest.mark.parametrize('name', checksums.COMMIT_MARKERS)
def test_a_commit_marker_may_be_garbage_for_nothing_reads_it(copied, name):
    (copied / '2' / name).write_bytes(b'\xff{')
    with Checkpoints(copied) as checkpoints:
        state, step, _ = checkpoints.restore(make_state())
        assert step == 2
        assert_same(state, make_state(2))
        checkpoints.save(3, state, {})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2, 3]


def test_when_every_checkpoint_is_damaged_the_run_stops(copied):
    for step in (1, 2):
        flip_bit(copied / str(step) / 'meta' / 'metadata')
    with Checkpoints(copied) as checkpoints, pytest.raises(UserError, match='step 1, 2'):
        checkpoints.restore(make_state())
    assert checkpoint.steps(copied) == [1, 2]


def test_a_damaged_step_is_written_again_when_the_run_reaches_it(copied):
    flip_bit(copied / '2' / 'meta' / 'metadata')
    with Checkpoints(copied, keep_last=2) as checkpoints:
        assert checkpoints.restore(make_state())[1] == 1
        checkpoints.save(2, make_state(5), {'seed': 5})
        state, step, meta = checkpoints.restore(make_state())
        assert (step, meta, checkpoints.steps()) == (2, {'seed': 5}, [1, 2])
    assert_same(state, make_state(5))


def test_a_damaged_step_does_not_count_as_one_of_those_to_keep(copied):
    flip_bit(copied / '2' / 'meta' / 'metadata')
    with Checkpoints(copied, keep_last=2) as checkpoints:
        checkpoints.restore(make_state())
        checkpoints.save(3, make_state(3), {})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3]


def test_saving_a_step_twice_keeps_the_first(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(1), {})
        checkpoints.save(1, make_state(2), {})
        assert_same(checkpoints.restore(make_state())[0], make_state(1))


@pytest.mark.parametrize(
    'keep_last, every, kept',
    [(1, None, [7]), (2, None, [6, 7]), (2, 3, [0, 3, 6, 7])],
)
def test_the_last_ones_and_every_multiple_are_kept(tmp_path, keep_last, every, kept):
    with Checkpoints(tmp_path, keep_last=keep_last, keep_every_steps=every) as checkpoints:
        for step in range(8):
            checkpoints.save(step, {'x': jnp.ones(3)}, {})
        checkpoints.wait()
        assert checkpoints.steps() == kept
    assert checkpoint.steps(tmp_path) == kept


def test_keeping_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match='keep_last=0'):
        Checkpoints(tmp_path, keep_last=0)


WRITER = """
import sys
import jax.numpy as jnp
from mae_jax.checkpoints.manager import Checkpoints
with Checkpoints(sys.argv[1], keep_last=1) as checkpoints:
    for step in range(1, 1000):
        checkpoints.save(step, {'params': jnp.full(4_000_000, step)}, {'step': step})
        print(step, flush=True)
"""


@pytest.mark.parametrize('moment', ['directory', 'arrays', 'checksums', 'rename'])
def test_a_run_killed_while_it_writes_leaves_a_whole_checkpoint(tmp_path, moment):
    # Kill in the third save, when: its directory appears; arrays are in it; its checksums are
    # in it; it has its final name, while the step before it is being deleted.
    seen = {
        'directory': '3.orbax*',
        'arrays': '3.orbax*/state*/ocdbt*/d/*',
        'checksums': f'3.orbax*/{checksums.CHECKSUMS}',
        'rename': '3',
    }[moment]
    writer = subprocess.Popen([sys.executable, '-c', WRITER, tmp_path], stdout=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 60
        while not any(tmp_path.glob(seen)):
            assert writer.poll() is None
            assert time.monotonic() < deadline
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()

    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        state, step, meta = checkpoints.restore({'params': jnp.full(4_000_000, 0)})
        assert step >= 2
        assert meta == {'step': step}
        assert (np.asarray(state['params']) == step).all()
        checkpoints.save(step + 9, state, {})
    assert [path.name for path in tmp_path.iterdir()] == [str(step + 9)]  # no leftover


@pytest.mark.parametrize('surfaces_in', ['save', 'wait', 'close'])
def test_a_failed_write_is_told_and_earlier_checkpoints_are_intact(tmp_path, surfaces_in):
    large = {'x': jax.random.normal(jax.random.key(0), (1_000_000,))}
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(tmp_path, keep_last=1))
        checkpoints.save(1, large, {})
        checkpoints.wait()
        stack.enter_context(files_no_larger_than(100_000))
        checkpoints.save(2, large, {})
        with pytest.raises(UserError, match=f'step 2 .* {tmp_path}.*make room') as told:
            if surfaces_in == 'save':
                checkpoints.save(3, large, {})
            else:
                getattr(checkpoints, surfaces_in)()
        assert 'Traceback' not in str(told.value)
    with Checkpoints(tmp_path, keep_last=1) as checkpoints:
        state, step, _ = checkpoints.restore(large)
        assert step == 1
        assert_same(state, large)
        checkpoints.save(2, large, {})
    assert [path.name for path in tmp_path.iterdir()] == ['2']


def test_a_full_disk_is_told_by_its_name(tmp_path):
    state = {'x': jax.random.normal(jax.random.key(0), (300_000,))}
    with small_disk(tmp_path), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.save(2, state, {})
        with pytest.raises(UserError, match='No space left'):
            checkpoints.wait()
        assert_same(checkpoints.restore(state)[0], state)


def test_a_read_only_disk_is_told(tmp_path):
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
            Checkpoints(tmp_path / 'elsewhere')
    lingering = {t for t in threading.enumerate() if not t.daemon} - before
    assert not lingering  # they would keep the process from ending


def test_orbax_does_not_speak_to_the_user(copied):
    script = """
import logging, sys
logging.basicConfig(level=logging.INFO)
from absl import logging as absl_logging
absl_logging.set_verbosity(absl_logging.INFO)
import jax.numpy as jnp
from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.checkpoints.weights import restore_weights
from mae_jax.runtime.library_noise import silence_libraries
silence_libraries()
with Checkpoints(sys.argv[1], keep_last=1) as checkpoints:
    checkpoints.save(4, {'params': {'x': jnp.ones(3)}}, {})
    checkpoints.restore({'params': {'x': jnp.ones(3)}})
restore_weights(sys.argv[1])
absl_logging.info('a word of our own')
"""
    run = subprocess.run(
        [sys.executable, '-c', script, copied], capture_output=True, text=True, check=True
    )
    assert 'a word of our own' in run.stderr
    assert 'orbax' not in (run.stdout + run.stderr).lower()


def test_a_warning_is_seen_where_no_log_was_given(copied, caplog):
    flip_bit(copied / '2' / 'meta' / 'metadata')
    with caplog.at_level(logging.WARNING), Checkpoints(copied) as checkpoints:
        checkpoints.restore(make_state())
    assert 'step 2' in caplog.text
