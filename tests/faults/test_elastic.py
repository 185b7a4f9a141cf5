"""A run that goes on with other numbers of devices and processes is the same run."""

import pytest
from helpers.faulty_runs import (
    RUN,
    check_exactly_once,
    ended,
    finish,
    given,
    last_step,
    losses,
    make_greys,
    spawn,
    wait_for,
    wait_until,
)

pytestmark = pytest.mark.slow
WIDE = ('--config.model.width=64',)
"""Wide enough for fsdp to split kernels."""


@pytest.fixture(scope='module')
def arguments(tmp_path_factory):
    path = make_greys(tmp_path_factory.mktemp('images'))
    return (*RUN, *WIDE, f'--config.dataset.path={path}')


@pytest.fixture(scope='module')
def straight(arguments, tmp_path_factory):
    """(losses, batches) of one device, undisturbed."""
    root = tmp_path_factory.mktemp('straight')
    workdir, recorded = root / 'run', root / 'given'
    finish(*arguments, f'--workdir={workdir}', log=root / 'log', recorded=recorded)
    return losses(workdir), given(recorded)


@pytest.mark.parametrize(
    'machines',
    [
        [(8, 1, 8), (4, 1, 2), (1, 1, 1)],
        [(1, 1, 1), (2, 2, 4), (4, 1, 2)],
        [(2, 2, 2, 'alternate'), (2, 2, 2, 'process'), (2, 2, 4, 'alternate')],
    ],
    ids=['8, 4, 1 devices', '1 process, 2 of 2 devices, 1 of 4', 'other places in the mesh'],
)
def test_other_devices_processes_and_fsdp_in_mid_epoch_change_nothing(
    arguments, straight, tmp_path, machines
):
    """Where slices alternate, the rows of a batch go to both processes in turn."""
    workdir, recorded = tmp_path / 'run', tmp_path / 'given'
    arguments = (*arguments, f'--workdir={workdir}')
    for turn, (devices, processes, fsdp, *slices) in enumerate(machines):
        options = dict(devices=devices, processes=processes, recorded=recorded)
        options |= {'SLICES': slices[0]} if slices else {}
        arguments_now = (*arguments, f'--config.mesh.fsdp={fsdp}')
        log = tmp_path / f'log{turn}'
        if turn == len(machines) - 1:
            printed = finish(*arguments_now, log=log, **options)
            break
        started = spawn(*arguments_now, log=log, **options)
        with ended(started):
            stop = 10 + 17 * turn  # steps of 16 of 100 images: within an epoch
            assert wait_until(lambda step=stop: last_step(workdir) >= step, started)
            started[-1].terminate()
            assert set(wait_for(started, 120)) == {75}
    assert 'resuming at step' in printed and f'mesh.fsdp was {machines[-2][2]}' in printed
    assert losses(workdir) == pytest.approx(straight[0], rel=1e-5)
    assert given(recorded) == straight[1]  # row for row
    check_exactly_once(recorded)
