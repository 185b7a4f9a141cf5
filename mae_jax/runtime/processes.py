"""The processes of a run: finding each other, speaking with one voice, ending together."""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mae_jax.errors import Diverged, Lost, Preempted, UserError, brief

HEARTBEAT_S = 30
"""A process that gave no sign of life for so long is lost; JAX then ends the others."""
START_S = 300
"""So long the processes wait for each other at the start."""
LAST_WORDS_S = 2
"""Process 0, whose end ends the others, leaves them so long to say what is wrong themselves."""
MESSAGE_BYTES = 4096
SLURM_STEP = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID', 'SLURM_LOCALID')
LOST = ('Gloo', 'NCCL', 'oordination service', 'oordinationService', 'closed by peer')
"""How errors of collectives, barriers and heartbeats read (first letters come in both cases)."""

T = TypeVar('T')


def start_processes(saves: bool = True) -> None:
    """Joins the other processes of a run, where the environment says that there are some.

    Says in one line what it found; `find_processes` tells where it looks. Where the run `saves`,
    SIGTERM is left to JAX from here on, see `training/preemption.py`.

    Raises:
      UserError: the environment contradicts itself.
      Lost: the others did not come in time.
    """
    told, arguments = find_processes(os.environ)
    if arguments is not None:
        jax.config.update('jax_enable_preemption_service', saves)
        try:
            jax.distributed.initialize(
                **arguments,
                heartbeat_timeout_seconds=HEARTBEAT_S,
                initialization_timeout=START_S,
            )
        except (OSError, ValueError) as error:
            raise UserError(f'{told}, but the processes cannot be counted: {error}.') from error
        except RuntimeError as error:
            raise Lost(
                f'{told}, but the processes did not find each other ({brief(error)}): see that '
                'all were started, and can reach the coordinator.'
            ) from error
        told = f'{jax.process_count()} processes: {told}'
    if told:
        say(told)


def find_processes(environment: Mapping[str, str]) -> tuple[str, dict[str, Any] | None]:
    """What the environment says of other processes.

    JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID come first; the last
    may be left to Kubernetes, which numbers the pods of an Indexed Job. Cloud TPU and Slurm tell
    JAX by themselves.

    Returns:
      What was found, for the user, '' where it is nothing; and the arguments of
      `jax.distributed.initialize`, None where there is one process alone.

    Raises:
      UserError: a variable is missing or no number.
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
        where = 'Kubernetes' if 'KUBERNETES_SERVICE_HOST' in environment else 'the environment'
        arguments = dict(coordinator_address=address, num_processes=count, process_id=number)
        arguments['cluster_detection_method'] = 'deactivate'  # Slurm's would share out the GPUs
        return f'{where} names {address} as coordinator', arguments
    if _on_tpu(environment):
        return 'found by Cloud TPU', {}
    if int(environment.get('SLURM_NTASKS', '1')) > 1:
        if all(name in environment for name in SLURM_STEP):
            return f'found by Slurm, job {environment["SLURM_JOB_ID"]}', {}
        return 'one process: the Slurm job has several tasks, but srun did not start it', None
    return '', None


def _on_tpu(environment: Mapping[str, str]) -> bool:
    """Whether TPUs will be used, and something tells which others belong to them."""
    used = 'TPU_ML_PLATFORM' in environment  # set by JAX as it is imported where there are chips
    used &= 'tpu' in environment.get('JAX_PLATFORMS', 'tpu')
    alone = 'TPU_SKIP_MDS_QUERY' in environment
    listed = any(n in environment for n in ('TPU_WORKER_HOSTNAMES', 'TPU_PROCESS_ADDRESSES'))
    return used and (listed or not alone)


def say(message: str) -> None:
    """One line to the user, from one process."""
    if jax.process_index() == 0:
        print(message, flush=True)


def on_first(function: Callable[[], T]) -> T | None:
    """What process 0 makes of `function`; None in the others.

    Every process of the run must call it. A UserError in process 0 is raised in all, so that none
    waits for it.
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


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process of this run is gone, or cannot be reached."""
    if jax.process_count() == 1:
        return False
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return any(mark in str(link) for link in chain for mark in LOST)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Around a run: of several processes none is left waiting for one that failed.

    Raises:
      Lost: another process of the run is no longer there, or a device failed.
      UserError: a device has too little memory.
    """
    try:
        yield
    except (Preempted, Diverged):
        if jax.process_count() > 1:
            with contextlib.suppress(RuntimeError):  # another is gone: this one has its reason
                jax.distributed.shutdown()  # all come here, at the same step; none leaves early
        raise
    except UserError:
        if jax.process_count() > 1 and jax.process_index() == 0:
            time.sleep(LAST_WORDS_S)
        raise
    except BaseException as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and not is_lost(error):
            raise _device_failure(error) from error
        if jax.process_count() == 1:
            raise
        if is_lost(error):
            raise Lost(
                f'process {jax.process_index()} of {jax.process_count()} lost another '
                f'({brief(error)}); its own output says why. Saved steps are intact: run the '
                'same command to go on.'
            ) from error
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # a regular exit would wait for the others, as they wait for this one


def _device_failure(error: jax.errors.JaxRuntimeError) -> UserError:
    if 'RESOURCE_EXHAUSTED' in str(error):
        return UserError(
            f'a device has too little memory ({brief(error)}): set optimizer.accumulate, '
            'mesh.fsdp or model.remat=block; mae-jax plan tells what fits.'
        )
    traceback.print_exception(error)  # it may be a fault of the program after all
    return Lost(
        f'a device, or what runs it, failed ({brief(error)}). Saved steps are intact: run the '
        'same command to go on.'
    )
