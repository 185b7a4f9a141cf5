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
terminate = lambda: os.kill(os.getpid(), signal.SIGTERM)
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


def test_a_signal_ends_the_process_with_one_line():
    assert run('terminate(); time.sleep(20)') == (143, 'stopped\n')
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
    line = 'stopping; press Ctrl-C again to stop now\n'
    assert run(code) == (130, f'{line}[1]\nstopped\n')


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
    assert run(code.format('terminate()')) == (0, 'stopping (SIGTERM)\nSystemExit 143\n')
    assert run(code.format('press(); time.sleep(1)') + '\n    press(); time.sleep(20)') == (
        130,
        f'{line}KeyboardInterrupt \nstopped\n',
    )


def test_a_second_sigterm_does_not_stop_the_cleanup():
    code = (
        'try:\n    with cleaning_up():\n'
        '        try:\n            terminate(); time.sleep(20)\n'
        '        finally:\n            terminate(); time.sleep(0.3); print("clean")\n'
        'except BaseException as error:\n    print(type(error).__name__, error)'
    )
    assert run(code) == (0, 'stopping (SIGTERM)\nclean\nSystemExit 143\n')


def test_what_a_library_does_in_c_at_a_signal_is_done_after_the_line():
    code = (
        'import ctypes\n'
        'theirs = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda n: print("theirs", n, flush=True))\n'
        'ctypes.CDLL(None).signal(signal.SIGTERM, theirs)\n'
        'current_interrupts().take_back(signal.SIGTERM)\n'
        'current_interrupts().ask("asked", current_interrupts().forward)\n'
        'terminate(); time.sleep(0.3)'
    )
    assert run(code) == (0, 'asked (SIGTERM)\ntheirs 15\n')
    nothing = 'current_interrupts().take_back(signal.SIGTERM); print(current_interrupts().forward)'
    assert run(nothing) == (0, 'None\n')


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
    assert run(code.replace('press', 'terminate')) == (0, f'{-signal.SIGTERM}\n')


def test_a_background_job_goes_on_ignoring_it():
    assert run('press(); time.sleep(0.2); print("on")', signal.SIG_IGN) == (0, 'on\n')
    assert run('terminate(); time.sleep(20)', signal.SIG_IGN) == (143, 'stopped\n')


@pytest.mark.parametrize('module', ['numpy', 'jax'])
def test_nothing_is_imported_for_it(module):
    assert run(f'print({module!r} in sys.modules)') == (0, 'False\n')
