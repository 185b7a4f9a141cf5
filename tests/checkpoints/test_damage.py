"""A damaged checkpoint is noticed, named and skipped, and replaced when the run reaches it."""

import pytest
from helpers.checkpoints import assert_same, files_of, flip_bit, make_state

from mae_jax.checkpoints.find import steps
from mae_jax.checkpoints.integrity import CHECKSUMS, COMMIT_MARKERS
from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.errors import UserError


def test_a_flipped_bit_in_any_file_falls_back_to_the_previous_step(copied):
    names = [path.relative_to(copied / '2') for path in files_of(copied / '2')]
    assert len(names) > 8
    for name in names:
        log = []
        original = (copied / '2' / name).read_bytes()
        flip_bit(copied / '2' / name)
        with Checkpoints(copied, log=log.append) as checkpoints:
            state, step, meta = checkpoints.restore(make_state())
        assert_same(state, make_state(step))
        if str(name) in COMMIT_MARKERS:  # they contain nothing of the run
            assert step == 2
        else:
            assert (step, meta) == (1, {'seed': 1})
            assert 'step 2' in log[0]
            assert str(name) in log[0]
            assert 'step 1' in log[1]
        (copied / '2' / name).write_bytes(original)


def test_a_missing_or_truncated_file_falls_back_and_is_named(copied):
    largest = max(files_of(copied / '2' / 'state'), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    log = []
    with Checkpoints(copied, log=log.append) as checkpoints:
        largest.write_bytes(content[:-1])
        assert checkpoints.restore(make_state())[1] == 1
        assert f'{largest.name} has {len(content) - 1} bytes instead of {len(content)}' in log[0]
        largest.unlink()
        assert checkpoints.restore(make_state())[1] == 1
        assert f'{largest.name} is missing' in log[2]


@pytest.mark.parametrize('content', [None, b'', b'12345678', b'00000001\n{}'])
def test_without_a_readable_list_of_checksums_a_step_is_damaged(copied, content):
    listed = copied / '2' / CHECKSUMS
    listed.unlink()
    if content is not None:
        listed.write_bytes(content)
    log = []
    with Checkpoints(copied, log=log.append) as checkpoints:
        assert checkpoints.restore(make_state())[1] == 1
        assert checkpoints.steps() == ([1] if content is None else [1, 2])
    assert CHECKSUMS in log[0]


@pytest.mark.parametrize('name', COMMIT_MARKERS)
def test_a_commit_marker_may_be_damaged_because_nothing_reads_it(copied, name):
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
    assert steps(copied) == [1, 2]


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
