"""Detection in real processes: killed, and several of them."""

import json

import pytest
from helpers.detectors import FIELDS, as_flags
from helpers.faulty_runs import (
    ended,
    finish,
    is_saving,
    kill_when,
    last_step,
    log_of,
    losses,
    spawn,
)
from helpers.scenes import draw_scenes
from helpers.tiny_runs import flat, metrics

from mae_jax.checkpoints.find import locate
from mae_jax.checkpoints.weights import restore_weights

pytestmark = pytest.mark.slow
STEPS = 6


@pytest.fixture(scope='module')
def arguments(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    draw_scenes(root, 16, 64, 0, empty_every=8)
    draw_scenes(root, 9, 64, 1, split='val2017', empty_every=4)
    fields = FIELDS | {'dataset.path': root, 'checkpoint_every_steps': 1, 'per_class': True}
    return ('--config=configs/detect.py', *as_flags(fields))


@pytest.fixture(scope='module')
def undisturbed(arguments, tmp_path_factory):
    root = tmp_path_factory.mktemp('undisturbed')
    finish(*arguments, f'--workdir={root / "run"}', log=root / 'log')
    return root / 'run'


def outcome(workdir) -> tuple[dict[str, bytes], dict[int, float], str]:
    """Parameters to the bit, losses and detections."""
    params, _, step, _ = restore_weights(*locate(workdir))
    assert step == STEPS
    arrays = {name: value.tobytes() for name, value in flat(params).items()}
    return arrays, losses(workdir), (workdir / 'detections.json').read_text()


def test_sigkills_leave_the_detector_of_the_undisturbed_run(arguments, undisturbed, tmp_path):
    """While it compiles, saves, evaluates and steps."""
    workdir, log = tmp_path / 'run', tmp_path / 'log'
    arguments = (*arguments, f'--workdir={workdir}')
    moments = (
        lambda: 'compiling the step' in log.read_text(),
        lambda: last_step(workdir) >= 1 and is_saving(workdir),
        lambda: last_step(workdir) >= 3 and not evaluated(workdir, 3),
        lambda: last_step(workdir) >= 4,
    )
    for number, moment in enumerate(moments):
        processes = spawn(*arguments, log=log)
        with ended(processes):
            came = kill_when(moment, processes)
        assert came, f'the run ended before moment {number}: {log.read_text()}'
    assert 'resuming at step' in finish(*arguments, log=log)
    assert outcome(workdir) == outcome(undisturbed)


def test_two_processes_train_and_evaluate_as_one(arguments, undisturbed, tmp_path):
    """The first alone computes AP and writes; both know it."""
    workdir, log = tmp_path / 'run', tmp_path / 'log'
    finish(*arguments, f'--workdir={workdir}', log=log, processes=2)
    assert losses(workdir) == pytest.approx(losses(undisturbed), rel=1e-4)
    ours, other = (evaluated(path, STEPS) for path in (workdir, undisturbed))
    assert ours['eval/box_ap'] == pytest.approx(other['eval/box_ap'], abs=1e-3)
    records = [json.loads((p / 'detections.json').read_text()) for p in (workdir, undisturbed)]
    assert len(records[0]) == len(records[1]) > 0
    assert {r['image_id'] for r in records[0]} == {r['image_id'] for r in records[1]}
    assert 'box AP' not in log_of(log, 1, 2).read_text()


def evaluated(workdir, step: int) -> dict[str, float]:
    """What was measured at a step; {} if nothing was."""
    lines = [line for line in metrics(workdir) if 'eval/box_ap' in line]
    return next((line for line in lines if line['step'] == step), {})
