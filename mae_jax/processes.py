"""The processes of a run: finding each other at the start, and speaking with one voice."""

import os

import jax

from mae_jax.errors import UserError


def start_processes() -> None:
    """Joins the other processes of a run, where the environment says that there are some.

    A TPU pod and Slurm tell by themselves; elsewhere JAX_COORDINATOR_ADDRESS (host:port),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID do.
    """
    environment = os.environ
    if 'JAX_COORDINATOR_ADDRESS' in environment:
        try:
            processes = int(environment['JAX_NUM_PROCESSES']), int(environment['JAX_PROCESS_ID'])
        except (KeyError, ValueError) as error:
            raise UserError(
                'JAX_COORDINATOR_ADDRESS is set: set JAX_NUM_PROCESSES and JAX_PROCESS_ID beside '
                'it, to numbers.'
            ) from error
        jax.distributed.initialize(environment['JAX_COORDINATOR_ADDRESS'], *processes)
    elif ',' in environment.get('TPU_WORKER_HOSTNAMES', '') or (
        int(environment.get('SLURM_NTASKS', '1')) > 1
    ):
        jax.distributed.initialize()


def say(message: str) -> None:
    """One line to the user, from one process."""
    if jax.process_index() == 0:
        print(message, flush=True)
