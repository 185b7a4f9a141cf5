import subprocess
import sys
import time

import pytest

from mae_jax.errors import EXIT_LOST
from mae_jax.runtime.watchdog import watchdog

SCRIPT = """
import sys, time
from mae_jax.runtime.watchdog import watchdog
with watchdog(2.0) as alive:
    for _ in range(15):
        time.sleep(0.2)
        alive()
    print('alive for three seconds', flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_process_in_which_nothing_happens_is_ended_with_the_reason_and_the_place():
    done = subprocess.run([sys.executable, '-c', SCRIPT], capture_output=True, text=True)
    assert done.stdout == 'alive for three seconds\n'
    assert done.returncode == EXIT_LOST
    assert 'nothing happened for 2 s (config.step_timeout_s)' in done.stderr
    assert 'run the same command' in done.stderr
    assert 'line 9 in <module>' in done.stderr  # where the main thread sleeps


def test_what_takes_its_time_outside_is_left_alone():
    with watchdog(0.2):
        pass
    time.sleep(0.5)
