"""Ctrl-C at every stage of a run: one line, a status, no traceback."""

import re
import signal

import pytest
from helpers.commands import TINY, start
from helpers.slow import slow_after

from mae_jax.errors import EXIT_PREEMPTED

BEFORE, AFTER = 'stopped before the first step', 'stopped: saved steps are intact'
ASKED = 'stopping after this step; press Ctrl-C again to stop now'
MOMENTS = {
    'import mae_jax.cli.main': (130, 'stopped'),
    'exec': (130, 'stopped'),
    'import ml_collections': (130, BEFORE),
    'import jax': (130, BEFORE),
    'import orbax.checkpoint': (130, BEFORE),
    'call mae_jax.experiment.run:make_setup': (130, BEFORE),
    'compile 1': (130, BEFORE),  # the initial state
    'call mae_jax.experiment.train:make_hooks': (130, BEFORE),
    'step 1': (130, BEFORE),
    'step 3': (EXIT_PREEMPTED, ASKED),
    'call mae_jax.experiment.run:conclude': (130, AFTER),
    'exit': (130, AFTER),
}
"""Moment of interrupting_main.py -> exit status, and beginning of the line that answers."""


@pytest.fixture
def interrupted(monkeypatch, tmp_path):
    """Runs main.py with a Ctrl-C at a moment: interrupted(moment) -> (status, output)."""

    def run(moment: str, **variables: str) -> tuple[int, str]:
        # Without the variable of large pages the process is replaced once, as a user's is.
        variables |= {'MOMENT': moment, 'PYTHONPATH': '.:tests'}
        if moment.startswith('compile'):  # not a program that another test has compiled
            variables['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        process = start(
            *(*TINY, f'--workdir={tmp_path}'),
            script='tests/helpers/interrupting_main.py',
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    return run


@pytest.mark.parametrize('moment', slow_after(4, MOMENTS))
def test_a_ctrl_c_is_answered_by_one_line(interrupted, moment):
    expected, answer = MOMENTS[moment]
    status, output = interrupted(moment)
    if moment == 'exec' and 'finished' in output:
        pytest.skip('this machine needs no other process for large pages')
    assert status == expected, output
    lines = re.findall('^stop.*', output, re.M)
    assert lines[0].startswith(answer)
    assert len(lines) == (2 if expected == EXIT_PREEMPTED else 1)
    assert 'Traceback' not in output and 'KeyboardInterrupt' not in output
    if moment == 'import jax':  # the first line of a run does not wait for it
        assert output.startswith('mae_jax ')
    if expected == EXIT_PREEMPTED:
        assert lines[1] == 'stopped at step 3 and saved: run the same command to go on.'


@pytest.mark.slow
def test_the_second_ctrl_c_stops_at_once(interrupted):
    status, output = interrupted('step 3', AGAIN='1')
    assert status == 130, output
    assert re.findall('^stop.*', output, re.M) == [
        ASKED,
        'stopped: saved steps are intact, run the same command to go on',
    ]
