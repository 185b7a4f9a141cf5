"""Connects the processes of a run, and prints from one of them; `failures.py` ends them."""

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mae_jax.errors import Lost, UserError, brief
from mae_jax.files.paths import print_text

HEARTBEAT_S = 30
"""Seconds without a heartbeat after which a process counts as lost; JAX then ends the others."""
START_S = 300
"""Seconds that the processes wait for each other at the start."""
MESSAGE_BYTES = 4096
"""Longest error message that process 0 passes on to the others."""
SLURM_STEP = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID', 'SLURM_LOCALID')

T = TypeVar('T')


def start_processes(saves: bool = True) -> None:
    """Connects to the other processes of a run, if the environment names any.

    Prints one line about them; `find_processes` describes what is read. If the run `saves`
    checkpoints, JAX handles SIGTERM from this call on, see `runtime/preemption.py`.

    Raises:
      UserError: the environment contradicts itself.
      Lost: the others did not connect in time.
    """
    summary, arguments = find_processes(os.environ)
    if arguments is not None:
        jax.config.update('jax_enable_preemption_service', saves)
        try:
            jax.distributed.initialize(
                **arguments,
                heartbeat_timeout_seconds=HEARTBEAT_S,
                initialization_timeout=START_S,
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
            if not 0 <= number < count or ':' not in address:
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
    keeps the others from waiting for it.
    """
    if jax.process_count() == 1:
        return function()
    result, error = None, None
    if jax.process_index() == 0:
        try:
            result = function()
        except UserError as raised:
            error = raised
    message = np.zeros(MESSAGE_BYTES, np.uint8)
    if error is not None:
        text = str(error).encode()[:MESSAGE_BYTES]
        message[: len(text)] = np.frombuffer(text, np.uint8)
    text = bytes(multihost_utils.broadcast_one_to_all(message)).rstrip(b'\0')
    if text:
        raise error or UserError(text.decode(errors='replace'))
    return result
