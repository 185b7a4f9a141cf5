"""Decides what an error of a run means: a mistake, a fault of the program, a machine that failed.

Only the last is worth another start. It ends with EXIT_LOST, and launchers then run the command
again; a fault of the program would come back at every start, so it ends with 1 and its traceback.
"""

import contextlib
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator

import jax

from mae_jax.errors import Diverged, Lost, Preempted, UserError, brief

REPORT_S = 2
"""Seconds that process 0, whose end ends the others, leaves them to print their own errors."""
LOST_MARKS = ('Gloo', 'NCCL', 'oordination service', 'oordinationService', 'closed by peer')
"""Texts in errors of collectives, barriers and heartbeats (some with capitals, some without)."""
MACHINE_CODES = (
    'ABORTED',
    'CANCELLED',
    'DATA_LOSS',
    'DEADLINE_EXCEEDED',
    'INTERNAL',
    'UNAVAILABLE',
    'UNKNOWN',
)
"""Status codes of XLA for what may not happen again. Others, such as INVALID_ARGUMENT,
UNIMPLEMENTED and FAILED_PRECONDITION, are about the program."""
PROGRAM_MARKS = ('RET_CHECK failure', 'ailed to compile', 'ailed to legalize', 'Traceback (most')
"""Texts of XLA's compiler and of Python callbacks, whose faults are reported as INTERNAL, too."""
SMALLER = (
    'lower batch_size, or set optimizer.accumulate=2, model.remat=block or mesh.fsdp; mae-jax plan '
    'shows what each of them needs'
)
"""What makes a run need less memory."""
GPU_SHARE = 'XLA_CLIENT_MEM_FRACTION', 'XLA_PYTHON_CLIENT_MEM_FRACTION'
"""Variables that set the share of a GPU's memory that JAX uses; the new name and the old one."""


def is_lost(error: BaseException) -> bool:
    """Returns whether an error means that another process of this run is gone or unreachable."""
    if jax.process_count() == 1:
        return False
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    texts = [str(link) for link in chain]
    if any('invalid usage' in text for text in texts):  # NCCL's word for a wrong set-up
        return False
    return any(mark in text for text in texts for mark in LOST_MARKS)


def is_of_machine(error: jax.errors.JaxRuntimeError) -> bool:
    """Returns whether an error of XLA is one of a device or its runtime, not of the program."""
    text = str(error).strip()
    code = re.match('[A-Z_]+(?=:)', text)
    return bool(code and code[0] in MACHINE_CODES) and not any(x in text for x in PROGRAM_MARKS)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Wraps a run: when one of several processes fails, none of the others keeps waiting for it.

    A fault of the program is raised unchanged; in a run of several processes it is printed, and the
    process ends with status 1.

    Raises:
      Lost: another process of the run is gone, or a device failed.
      UserError: a device has too little memory, cannot be started, or serves two processes.
    """
    try:
        with explaining_memory(SMALLER):
            yield
    except (Preempted, Diverged):
        if jax.process_count() > 1:
            with contextlib.suppress(RuntimeError):  # another is gone; the reason stays
                jax.distributed.shutdown()  # all get to this line, at the same step
        raise
    except UserError:
        if jax.process_count() > 1 and jax.process_index() == 0:
            time.sleep(REPORT_S)
        raise
    except BaseException as error:
        if 'Unable to initialize backend' in str(error):
            raise UserError(
                f'the devices of this machine cannot be used ({brief(error)}): another process may '
                'hold them, or their driver does not work. JAX_PLATFORMS=cpu runs on the CPU.'
            ) from error
        if 'Duplicate GPU' in str(error):  # NCCL's words
            raise UserError(
                'two processes of this run use the same GPU: start one process for each GPU, or '
                'give each its own by CUDA_VISIBLE_DEVICES.'
            ) from error
        is_of_xla = isinstance(error, jax.errors.JaxRuntimeError) and not is_lost(error)
        if is_of_xla and is_of_machine(error):
            traceback.print_exception(error)  # it may be a fault of the program all the same
            raise Lost(
                f'a device, or what runs it, failed ({brief(error)}). Saved steps are intact: '
                'run the same command to go on.'
            ) from error
        if jax.process_count() == 1:
            raise
        if is_lost(error):
            raise Lost(
                f'process {jax.process_index()} of {jax.process_count()} lost another '
                f'({brief(error)}); its own output has the reason. Saved steps are intact: run '
                'the same command to go on.'
            ) from error
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # a regular exit would wait for the others, as they wait for this one


@contextlib.contextmanager
def explaining_memory(remedy: str) -> Iterator[None]:
    """Raises a UserError where a device has too little memory for what is inside.

    Args:
      remedy: which fields or flags to change.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error) or is_lost(error):
            raise
        message = f'a device has too little memory ({brief(error)}): {remedy}.{_offered()}'
        raise UserError(message) from error


def _offered() -> str:
    """Describes how much of a GPU JAX's allocator offers; '' on other devices."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get('bytes_limit')
    if device.platform != 'gpu' or not limit:
        return ''
    given = next((name for name in GPU_SHARE if name in os.environ), None)
    share = f'{given}={os.environ[given]}' if given else '75%, its default'
    return (
        f' JAX offers {limit / 2**30:.1f} GiB of this GPU ({share}), less what other programs '
        f'hold (nvidia-smi lists them); where none does, {given or GPU_SHARE[0]}=0.92 offers more.'
    )
