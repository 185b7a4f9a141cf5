"""Ctrl-C in a command: processes of the standard library alone, which is all that it imports."""

import signal
import subprocess
import sys

import pytest
from helpers.commands import ROOT

START = """
import hashlib, os, signal, sys, time
from mae_jax.runtime.interrupts import *
from mae_jax.runtime.interrupts import current_interrupts
press = lambda: os.kill(os.getpid(), signal.SIGINT)
answer_interrupts()
"""


def run(code, handler=signal.SIG_DFL):
    """Exit status and what was printed."""
    done = subprocess.run(
        [sys.executable, '-c', START + code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
        preexec_fn=lambda: signal.signal(signal.SIGINT, handler),
    )
    return done.returncode, done.stdout


def test_a_ctrl_c_ends_the_process_with_one_line():
    assert run('press(); time.sleep(20)') == (130, 'stopped\n')
    assert run('current_interrupts().farewell = "bye"; press(); time.sleep(20)') == (130, 'bye\n')


def test_it_is_answered_while_the_main_thread_is_in_c_and_no_handler_of_python_can_run():
    code = (
        'import threading; threading.Timer(0.3, press).start()\n'
        'hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)'
    )
    assert run(code) == (130, 'stopped\n')


def test_a_request_is_answered_once_and_the_second_ctrl_c_stops():
    code = (
        'asked = []; current_interrupts().ask("stopping", lambda: asked.append(1))\n'
        'press(); time.sleep(0.2); print(asked, flush=True); press(); time.sleep(20)'
    )
    assert run(code) == (130, 'stopping\n[1]\nstopped\n')


def test_a_ctrl_c_after_the_time_of_requests_stops():
    code = 'i = current_interrupts(); i.ask("no", exit); i.exit("bye"); press(); time.sleep(20)'
    assert run(code) == (130, 'bye\n')


def test_cleanup_follows_the_line_and_sigterm_too():
    code = (
        'try:\n'
        '    with cleaning_up():\n        {}; time.sleep(20)\n'
        'except BaseException as error:\n    print(type(error).__name__, error)'
    )
    line = 'stopping; press Ctrl-C again to stop now\n'
    assert run(code.format('press()')) == (0, f'{line}KeyboardInterrupt \n')
    terminate = 'os.kill(os.getpid(), signal.SIGTERM)'
    assert run(code.format(terminate)) == (0, 'SystemExit 143\n')
    assert run(code.format('press(); time.sleep(1)') + '\n    press(); time.sleep(20)') == (
        130,
        f'{line}KeyboardInterrupt \nstopped\n',
    )


def test_what_is_pressed_while_the_process_is_replaced_is_not_lost():
    code = (
        'if "again" in sys.argv: time.sleep(5); exit()\n'
        'hold_interrupts(); press()\n'
        'os.execv(sys.executable, [*sys.orig_argv, "again"])'
    )
    assert run(code) == (130, 'stopped\n')


def test_a_forked_process_does_not_answer_for_its_parent():
    code = (
        'import warnings; warnings.simplefilter("ignore")  # Python 3.12 warns of a fork\n'
        'if not (child := os.fork()): press(); time.sleep(20)\n'
        'print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])); time.sleep(0.2)'
    )
    assert run(code) == (0, f'{-signal.SIGINT}\n')


def test_a_background_job_goes_on_ignoring_it():
    assert run('press(); time.sleep(0.2); print("on")', signal.SIG_IGN) == (0, 'on\n')


@pytest.mark.parametrize('module', ['numpy', 'jax'])
def test_nothing_is_imported_for_it(module):
    assert run(f'print({module!r} in sys.modules)') == (0, 'False\n')
