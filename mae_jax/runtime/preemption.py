"""What asks a run to save and stop: SIGTERM, Ctrl-C, and a notice of the cloud it runs in."""

import contextlib
import http.client
import os
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

METADATA = 'http://{host}/computeMetadata/v1/instance/{key}'
NOTICES = {'maintenance-event': 'TERMINATE_ON_HOST_MAINTENANCE', 'preempted': 'TRUE'}
"""What Compute Engine's metadata server says of a machine that it is about to take away."""
POLL_S = 5.0


@contextlib.contextmanager
def stop_requests(first_step: int = 0) -> Iterator[Callable[[int], bool]]:
    """Within it SIGTERM and Ctrl-C ask the loop to save and stop; a second Ctrl-C stops at once.

    Yields a function of the step that tells whether to stop after it; the loop must ask at every
    step, from `first_step` + 1 on. Of several processes all are told the same, whichever was asked.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False  # Python delivers signals to the main thread alone
        return
    asked = threading.Event()
    shared = jax.process_count() > 1

    def ask(number: int, frame: object) -> None:
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()
        if shared:
            os.kill(os.getpid(), signal.SIGTERM)

    def stopping(step: int) -> bool:
        # JAX counts from 0, and never stops at a step below the one that it has settled on.
        return multihost_utils.reached_preemption_sync_point(step - first_step)

    # Of several processes SIGTERM belongs to JAX, whose preemption service finds the step at which
    # all can stop.
    numbers = (signal.SIGINT,) if shared else (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        with _notices() if _in_cloud() else contextlib.nullcontext():
            yield stopping if shared else lambda step: asked.is_set()
    finally:
        if shared:
            before[signal.SIGTERM] = signal.SIG_DFL  # nothing is left to be saved
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_cloud() -> bool:
    """GCE_METADATA_IP is what JAX too takes for the metadata server's address."""
    return jax.default_backend() == 'tpu' or 'GCE_METADATA_IP' in os.environ


@contextlib.contextmanager
def _notices() -> Iterator[None]:
    """Within it a new notice of the metadata server is a SIGTERM to this process.

    One that stands already does not count: a run that it stopped would be stopped for ever.
    """
    host = os.environ.get('GCE_METADATA_IP', 'metadata.google.internal')
    closing = threading.Event()

    def standing() -> set[str]:
        return {key for key, value in NOTICES.items() if _read(host, key) == value}

    def watch() -> None:
        before = standing()
        while not closing.wait(POLL_S):
            if standing() - before:
                print('this machine is about to be taken away: saving', flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
                return

    threading.Thread(target=watch, name='mae_jax-notices', daemon=True).start()
    try:
        yield
    finally:
        closing.set()


def _read(host: str, key: str) -> str | None:
    """One value of the metadata server; None where there is none, or no server."""
    url = METADATA.format(host=host, key=key)
    request = urllib.request.Request(url, headers={'Metadata-Flavor': 'Google'})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=POLL_S) as answer:
            return answer.read().decode().strip()
    except (OSError, ValueError, http.client.HTTPException):
        return None
