"""Images that cannot be read or hold NaN, in a real run: as documented, and nothing is lost."""

import math

import numpy as np
import pytest
from helpers.faulty_runs import (
    RUN,
    STEPS,
    ended,
    finish,
    last_step,
    lines,
    losses,
    make_greys,
    spawn,
    wait_for,
    wait_until,
)

from mae_jax.data.loader.order import epochs
from mae_jax.errors import EXIT_DIVERGED, EXIT_LOST, EXIT_USER_ERROR

pytestmark = pytest.mark.slow


def damage_images(images, count):
    """Cuts every so manyth training image short: what is left starts like an image."""
    paths = sorted((images / 'train').rglob('*.png'))
    for path in paths[:: len(paths) // count][:count]:
        path.write_bytes(path.read_bytes()[:40])


def run_to_the_end(*arguments, log):
    processes = spawn(*arguments, log=log)
    with ended(processes):
        (status,) = wait_for(processes, 200)
    return status, log.read_text()


@pytest.mark.parametrize(
    ('bad', 'policy', 'expected'),
    [
        (2, 'raise', 'cannot be read as an image'),
        (2, 'skip', None),
        (60, 'skip', r'images were unreadable, more than dataset.max_bad_share=0.01'),
    ],
    ids=['1%, raise', '1%, skip', '30%, skip'],
)
def test_unreadable_images_are_named_replaced_or_too_many(tmp_path, bad, policy, expected):
    images, workdir = make_greys(tmp_path / 'images', 200), tmp_path / 'run'
    damage_images(images, bad)
    status, printed = run_to_the_end(
        *RUN,
        f'--config.dataset.path={images}',
        f'--config.dataset.on_error={policy}',
        f'--workdir={workdir}',
        log=tmp_path / 'log',
    )
    assert 'Traceback' not in printed
    if expected is None:
        assert status == 0 and len(losses(workdir)) == STEPS
        replaced = max(line.get('replaced_images', 0) for line in lines(workdir))
        assert 6 <= replaced <= 8  # 3.84 epochs of two; batches ahead of their use do not count
    else:
        assert status == EXIT_USER_ERROR and expected in printed


ARRAYS = 128


def make_arrays(root, broken=()):
    """Float images as .npy; squares are infinite in the numbers in `broken`."""
    rng = np.random.default_rng(0)
    for split, count in (('train', ARRAYS), ('val', 8)):
        (root / split).mkdir(parents=True)
        for number in range(count):
            array = rng.random((8, 8, 1), np.float32) * 255
            if split == 'train' and number in broken:
                array *= 1e27
            np.save(root / split / f'{number:03d}.npy', array)
    return root


def test_a_step_that_is_not_finite_stops_the_run_or_is_left_out(tmp_path):
    late = epochs(ARRAYS, seed=0)[100]  # after the first checkpoint
    images, workdir = make_arrays(tmp_path / 'images', broken=[late]), tmp_path / 'run'
    arguments = (*RUN, f'--config.dataset.path={images}', f'--workdir={workdir}')
    status, printed = run_to_the_end(*arguments, log=tmp_path / 'log')
    assert 'at step 7' in printed  # of 8 an epoch
    assert status == EXIT_DIVERGED and 'optimizer.skip_nonfinite' in printed
    assert 'Traceback' not in printed
    before = losses(workdir)
    printed = finish(*arguments, '--config.optimizer.skip_nonfinite=3', log=tmp_path / 'log')
    assert 'optimizer.skip_nonfinite was 0, now 3' in printed and 'skipped 1' in printed
    after = losses(workdir)
    assert len(after) == STEPS - STEPS * 16 // ARRAYS  # one step of each epoch
    assert all(math.isfinite(loss) for loss in after.values())
    assert all(after[step] == loss for step, loss in before.items())


def test_steps_that_are_not_finite_end_the_run_after_n_in_a_row(tmp_path):
    images, workdir = make_arrays(tmp_path / 'images', broken=range(ARRAYS)), tmp_path / 'run'
    status, printed = run_to_the_end(
        *RUN,
        f'--config.dataset.path={images}',
        '--config.optimizer.skip_nonfinite=5',
        f'--workdir={workdir}',
        log=tmp_path / 'log',
    )
    assert status == EXIT_DIVERGED
    assert 'at step 5, the last of 5 such steps in a row' in printed


def test_a_step_that_hangs_ends_the_run_within_the_stated_time_and_the_next_goes_on(tmp_path):
    images, workdir = make_greys(tmp_path / 'images'), tmp_path / 'run'
    arguments = (*RUN, f'--config.dataset.path={images}', f'--workdir={workdir}')
    options = dict(log=tmp_path / 'log', recorded=tmp_path / 'given')
    processes = spawn(*arguments, '--config.step_timeout_s=90', HANG_AT='10', **options)
    with ended(processes):
        assert wait_until(lambda: last_step(workdir) >= 8, processes)
        (status,) = wait_for(processes, 120)
    printed = (tmp_path / 'log').read_text()
    assert status == EXIT_LOST and 'nothing happened for 90 s (config.step_timeout_s)' in printed
    printed = finish(*arguments, **options)
    assert 'resuming at step 8' in printed
