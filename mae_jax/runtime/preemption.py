"""Turns SIGTERM, Ctrl-C and preemption notices of a cloud into a request to save and stop."""

import contextlib
import http.client
import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from mae_jax.runtime.interrupts import AGAIN, current_interrupts, write_line

METADATA = 'http://{host}/computeMetadata/v1/instance/{key}'
NOTICES = {'maintenance-event': 'TERMINATE_ON_HOST_MAINTENANCE', 'preempted': 'TRUE'}
"""Key -> value that Compute Engine's metadata server gives before it preempts the machine."""
POLL_S = 5.0
"""Seconds between two requests to the metadata server, and the timeout of one."""


STOPPING = 'stopping after this step'
STOPPED = 'stopped: saved steps are intact, run the same command to go on'


@contextlib.contextmanager
def stop_requests(first_step: int = 0) -> Iterator[Callable[[int], bool]]:
    """Handles SIGTERM and Ctrl-C as a request to save and stop; a second Ctrl-C stops at once.

    In a command (see `interrupts.py`) a signal before the first step stops at once, too; of several
    processes only Ctrl-C does, while SIGTERM makes all of them save after the first.

    Yields a function of the step that returns whether to stop after it. The loop must call it at
    every step, from `first_step` + 1 on. With several processes it returns the same in all of them,
    whichever got the signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # Python delivers signals to the main thread alone
        return
    requested = threading.Event()
    several = jax.process_count() > 1
    interrupts = current_interrupts()

    def request(*_: object) -> None:
        requested.set()
        if several and interrupts and interrupts.forward:
            interrupts.forward()
        elif several:
            os.kill(os.getpid(), signal.SIGTERM)

    def interrupted(number: int, frame: object) -> None:
        if requested.is_set():
            raise KeyboardInterrupt
        write_line(f'{STOPPING}; {AGAIN}')
        request()

    def stopping(step: int) -> bool:
        if interrupts and step == first_step + 1:
            interrupts.ask(STOPPING, request)  # from now on there is something to save
            interrupts.farewell = STOPPED
        if several:
            # JAX counts from 0, and never stops before the step that the processes have agreed on.
            return multihost_utils.reached_preemption_sync_point(step - first_step)
        return requested.is_set()

    # With several processes JAX handles SIGTERM: its preemption service agrees on the step at which
    # all of them stop.
    handlers = {} if interrupts or several else {signal.SIGTERM: request}
    handlers |= {} if interrupts else {signal.SIGINT: interrupted}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        with _notices() if _in_cloud() else contextlib.nullcontext():
            yield stopping
    finally:
        if interrupts:
            interrupts.exit(interrupts.farewell)
        elif several:
            before[signal.SIGTERM] = signal.SIG_DFL  # nothing is left to save
        for number, handler in before.items():
            signal.signal(number, handler)


def answer_before_service() -> None:
    """Lets a command answer SIGTERM at once, although JAX's preemption service handles it.

    Call it when the processes of a run have connected. The service is informed all the same, and
    makes every process stop after the same step.
    """
    if interrupts := current_interrupts():
        interrupts.take_back(signal.SIGTERM)
        if interrupts.forward:
            interrupts.ask('stopping after the first step', interrupts.forward, [signal.SIGTERM])


def _in_cloud() -> bool:
    """Returns whether a metadata server can be expected; JAX reads GCE_METADATA_IP as well."""
    return jax.default_backend() == 'tpu' or 'GCE_METADATA_IP' in os.environ


@contextlib.contextmanager
def _notices() -> Iterator[None]:
    """Sends this process a SIGTERM when the metadata server gives a new notice.

    A notice that was given before the start does not count: the run that it stopped could never be
    started again.
    """
    host = os.environ.get('GCE_METADATA_IP', 'metadata.google.internal')
    closing = threading.Event()

    def given() -> set[str]:
        return {key for key, value in NOTICES.items() if _read(host, key) == value}

    def watch() -> None:
        before = given()
        while not closing.wait(POLL_S):
            if given() - before:
                print('this machine is about to be taken away: saving', flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, name='mae_jax-notices', daemon=True).start()
    try:
        yield
    finally:
        closing.set()


def _read(host: str, key: str) -> str | None:
    """Reads one value of the metadata server; None without a value or a server."""
    url = METADATA.format(host=host, key=key)
    request = urllib.request.Request(url, headers={'Metadata-Flavor': 'Google'})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=POLL_S) as answer:
            return answer.read().decode().strip()
    except (OSError, ValueError, http.client.HTTPException):
        return None
