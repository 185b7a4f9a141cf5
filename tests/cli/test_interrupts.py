"""Ctrl-C and SIGTERM at every stage of a run: one line, a status, no traceback.

With `-s -m ""` it prints the table of docs/failures.md.
"""

import re
import signal

import pytest
from helpers.commands import TINY, start
from helpers.slow import slow_after

from mae_jax.errors import EXIT_PREEMPTED

BEFORE, AFTER = 'stopped before the first step', 'stopped: saved steps are intact'
ASKED = 'stopping after this step'
MOMENTS = {
    'import mae_jax.cli.main': 'stopped',
    'exec': 'stopped',
    'import ml_collections': BEFORE,
    'import jax': BEFORE,
    'import orbax.checkpoint': BEFORE,
    'call mae_jax.experiment.run:make_setup': BEFORE,
    'compile 1': BEFORE,  # the initial state
    'call mae_jax.experiment.train:make_hooks': BEFORE,
    'step 1': BEFORE,
    'step 3': ASKED,
    'call mae_jax.experiment.run:conclude': AFTER,
    'exit': AFTER,
}
"""Moment of interrupting_main.py -> beginning of the line that answers."""
SIGNALS = {'SIGINT': '; press Ctrl-C again to stop now', 'SIGTERM': ' (SIGTERM)'}
"""Signal -> end of the line that announces a stop after the step."""
CASES = [(moment, name) for name in SIGNALS for moment in MOMENTS]
QUICK = [(moment, 'SIGINT') for moment in list(MOMENTS)[:4]] + [('import jax', 'SIGTERM')]


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


@pytest.mark.parametrize(
    ('moment', 'name'), slow_after(len(QUICK), sorted(CASES, key=lambda case: case not in QUICK))
)
def test_a_signal_is_answered_by_one_line(interrupted, moment, name):
    status, output = interrupted(moment, SIGNAL=name)
    if moment == 'exec' and 'finished' in output:
        pytest.skip('this machine needs no other process for large pages')
    lines = re.findall('^stop.*', output, re.M)
    print(f'| {moment} | {name} | {status} | `{lines[0] if lines else ""}` |')
    goes_on = MOMENTS[moment] == ASKED
    assert status == (EXIT_PREEMPTED if goes_on else 128 + signal.Signals[name]), output
    assert lines[0].startswith(MOMENTS[moment] + (SIGNALS[name] if goes_on else ''))
    assert len(lines) == (2 if goes_on else 1)
    assert 'Traceback' not in output and 'KeyboardInterrupt' not in output
    if moment == 'import jax':  # the first line of a run does not wait for it
        assert output.startswith('mae_jax ')
    if goes_on:
        assert lines[1] == 'stopped at step 3 and saved: run the same command to go on.'


@pytest.mark.slow
def test_the_second_ctrl_c_stops_at_once(interrupted):
    status, output = interrupted('step 3', AGAIN='1')
    assert status == 130, output
    assert re.findall('^stop.*', output, re.M) == [
        ASKED + SIGNALS['SIGINT'],
        'stopped: saved steps are intact, run the same command to go on',
    ]
