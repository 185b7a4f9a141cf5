"""Connects the processes of a run, and prints from one of them; `failures.py` ends them."""

import contextlib
import errno
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax

from mae_jax.errors import EXIT_LOST, Lost, UserError, brief
from mae_jax.files.paths import print_text
from mae_jax.runtime.agreement import from_first

GRACE_S = 60
"""Seconds that JAX has beyond our own time limit of connecting: it would abort the process."""
PROBE_S = 5
"""Seconds for a connection to the coordinator."""
SLURM_STEP = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID', 'SLURM_LOCALID')

T = TypeVar('T')


def start_processes(
    saves: bool = True, *, connect_timeout_s: float = 300, heartbeat_timeout_s: float = 100
) -> None:
    """Connects to the other processes of a run, if the environment names any.

    Prints one line about them; `find_processes` describes what is read.

    Args:
      saves: whether the run writes checkpoints: JAX then handles SIGTERM from this call on, see
        `runtime/preemption.py`.
      connect_timeout_s: if the others have not come by then, the process ends with a sentence and
        EXIT_LOST.
      heartbeat_timeout_s: a process that sends no heartbeat for so long counts as lost, and JAX
        ends the others.

    Raises:
      UserError: the environment contradicts itself, or a timeout is too short.
      Lost: the processes could not connect.
    """
    limits = dict(connect_timeout_s=connect_timeout_s, heartbeat_timeout_s=heartbeat_timeout_s)
    for field, value in limits.items():
        if value < 1:
            raise UserError(f'{field}={value} must be at least 1.')
    summary, arguments = find_processes(os.environ)
    if arguments is not None:
        jax.config.update('jax_enable_preemption_service', saves)
        address, first = arguments.get('coordinator_address'), arguments.get('process_id') == 0
        if first:
            _check_port(address)
        try:
            with _time_limit(connect_timeout_s, summary, address, first):
                jax.distributed.initialize(
                    **arguments,
                    heartbeat_timeout_seconds=int(heartbeat_timeout_s),
                    initialization_timeout=int(connect_timeout_s) + GRACE_S,
                )
        except (OSError, ValueError) as error:
            raise UserError(f'{summary}, but the processes cannot be counted: {error}.') from error
        except RuntimeError as error:
            raise Lost(
                f'{summary}, but the processes could not connect ({brief(error)}): check that '
                'all were started, and can reach the coordinator.'
            ) from error
        summary = f'{jax.process_count()} processes: {summary}'
    if summary:
        say(summary)


@contextlib.contextmanager
def _time_limit(timeout_s: float, summary: str, address: str | None, first: bool) -> Iterator[None]:
    """Ends the process with a sentence where what is within takes longer: JAX would abort it.

    The `first` process ends last, so that the others still reach its coordinator and do not report
    that it is gone.
    """

    def end() -> None:
        try:
            print(
                f'{summary}, but not all processes connected within {timeout_s:g} s '
                f'(config.connect_timeout_s): {_probe(address)}.',
                file=sys.stderr,
                flush=True,
            )
            time.sleep(PROBE_S if first else 0)
        finally:
            os._exit(EXIT_LOST)

    timer = threading.Timer(timeout_s, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _probe(address: str | None) -> str:
    """Describes whether the coordinator can be reached, and what to check."""
    if address is None:
        return 'check that all were started, and can reach the first of them'
    host, _, port = address.rpartition(':')
    try:
        socket.create_connection((host.strip('[]'), int(port)), PROBE_S).close()
    except OSError as error:
        reason = error.strerror or error
        return f'{address} cannot be reached from here ({reason}); process 0 must run there'
    return f'{address} answers, so another process was not started or cannot reach it'


def _check_port(address: str) -> None:
    """Raises a UserError if a program listens at the port: JAX would share it with another run."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections may still close
        try:
            probe.bind(('', int(address.rpartition(':')[2])))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise UserError(
                    f'JAX_COORDINATOR_ADDRESS={address}: another program uses that port of this '
                    'machine, perhaps another run: choose a free one.'
                ) from error


def find_processes(environment: Mapping[str, str]) -> tuple[str, dict[str, Any] | None]:
    """Reads from the environment which other processes belong to the run.

    JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID have priority; the
    last may be left to Kubernetes, which numbers the pods of an Indexed Job. JAX itself reads the
    environments of Cloud TPU and Slurm.

    Returns:
      A sentence for the user, '' if there is nothing to report; and the arguments of
      `jax.distributed.initialize`, None for a single process.

    Raises:
      UserError: a variable is missing or not a valid number.
    """
    if address := environment.get('JAX_COORDINATOR_ADDRESS'):
        index = 'JAX_PROCESS_ID'
        if index not in environment and 'JOB_COMPLETION_INDEX' in environment:
            index = 'JOB_COMPLETION_INDEX'
        try:
            count, number = int(environment['JAX_NUM_PROCESSES']), int(environment[index])
            host, _, port = address.rpartition(':')
            if not 0 <= number < count or not host or not 0 < int(port) < 1 << 16:
                raise ValueError
        except (KeyError, ValueError) as error:
            raise UserError(
                f'JAX_COORDINATOR_ADDRESS={address} must be host:port, with JAX_NUM_PROCESSES '
                'beside it, and JAX_PROCESS_ID one of 0, 1, ... below that.'
            ) from error
        origin = 'Kubernetes' if 'KUBERNETES_SERVICE_HOST' in environment else 'the environment'
        arguments = dict(coordinator_address=address, num_processes=count, process_id=number)
        arguments['cluster_detection_method'] = 'deactivate'  # Slurm's would divide the GPUs
        return f'{origin} names {address} as coordinator', arguments
    if _on_tpu(environment):
        return 'started by Cloud TPU', {}
    if int(environment.get('SLURM_NTASKS', '1')) > 1:
        if all(name in environment for name in SLURM_STEP):
            return f'started by Slurm, job {environment["SLURM_JOB_ID"]}', {}
        return 'one process: the Slurm job has several tasks, but srun did not start it', None
    return '', None


def _on_tpu(environment: Mapping[str, str]) -> bool:
    """Returns whether TPUs will be used whose other hosts JAX can find out."""
    used = 'TPU_ML_PLATFORM' in environment  # set by JAX on import if the machine has TPU chips
    used &= 'tpu' in environment.get('JAX_PLATFORMS', 'tpu')
    alone = 'TPU_SKIP_MDS_QUERY' in environment
    listed = any(n in environment for n in ('TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES'))
    return used and (listed or not alone)


def say(message: str) -> None:
    """Prints one line for the user, in process 0 alone."""
    if jax.process_index() == 0:
        print_text(message)


def on_first(function: Callable[[], T]) -> T | None:
    """Calls `function` in process 0 and returns its result there; returns None in the others.

    Every process of the run must call it. A UserError in process 0 is raised in all of them, which
    keeps the others from waiting for it. `from_first` returns the result in every process.
    """
    result = None

    def call() -> None:
        nonlocal result
        result = function()

    from_first(call)
    return result
