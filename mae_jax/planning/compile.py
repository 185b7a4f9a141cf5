"""Compiles the step of a run for chips that this machine lacks, with the compiler of a TPU."""

import operator
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import NamedTuple

import jax
from jax.experimental import topologies

from mae_jax.errors import UserError, brief
from mae_jax.experiment.train import make_run_step
from mae_jax.planning.plan import Run, loaded_batch
from mae_jax.runtime.chips import Chip
from mae_jax.runtime.library_noise import discarded_stderr
from mae_jax.training.state import jit_step


class Slices(NamedTuple):
    """Describes the topologies of a chip: from the smallest with a whole host to a pod."""

    smallest: str
    largest: str
    options: Mapping[str, str] = {}
    """How libtpu makes one device of each chip."""


SLICES = {
    'v4': Slices('2x2x1', '16x16x16', {'chip_config_name': 'megacore'}),
    'v5e': Slices('2x2', '16x16'),
    'v5p': Slices('2x2x1', '16x20x28'),
    'v6e': Slices('2x2', '16x16'),
}
"""Chips that can be compiled for."""


def topology_devices(chip: Chip, topology: str) -> list[jax.Device]:
    """Returns the devices of a slice of TPUs; programs can be compiled for them, not run.

    Args:
      topology: chips along each axis, such as '2x2' or '4x4x8'.

    Raises:
      UserError: there is no compiler for the chip, or it has no such topology.
    """
    if chip.name not in SLICES:
        known = ', '.join(SLICES)
        raise UserError(f'--compile does not know {chip.name}: choose --chip {known}.')
    slices = SLICES[chip.name]
    refused = UserError(
        f'--topology {topology} is none of {chip.name}: give the chips along each axis, '
        f'from {slices.smallest} to {slices.largest}.'
    )
    if not re.fullmatch(r'[1-9]\d{0,2}(x[1-9]\d{0,2})*', topology):
        raise refused
    sides, most = (sorted(map(int, text.split('x'))) for text in (topology, slices.largest))
    if len(sides) != len(most) or any(map(operator.gt, sides, most)):
        raise refused
    if find_spec('libtpu') is None and not os.environ.get('TPU_LIBRARY_PATH'):
        raise UserError(
            f'--compile for {chip.name} needs its compiler, and no TPU: pip install libtpu.'
        )
    # It uses no TPU, and need not wait for a process that does, nor keep one from it.
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    try:
        with discarded_stderr():
            topology = topologies.get_topology_desc(
                f'{chip.name}:{topology}', platform='tpu', **slices.options
            )
    except jax.errors.JaxRuntimeError as error:
        if 'INVALID_ARGUMENT' in str(error):
            raise refused from error
        raise UserError(f'libtpu does not start ({brief(error)}).') from error
    return topology.devices


def compile_step(run: Run) -> jax.stages.Compiled:
    """Compiles the step that `run` trains with, as the loop does: layouts, donation and options.

    Args:
      run: on a mesh of `topology_devices`.

    Raises:
      UserError: the program needs more memory than the chip has.
    """
    state = run.state
    step = jit_step(make_run_step(run.config, run.task, run.optimizer), run.mesh, state)
    lowered = step.lower(state, loaded_batch(run.config, run.task))
    try:
        with discarded_stderr():
            return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        sizes = re.search(r'Used ([\d.]+)G of ([\d.]+)G hbm', str(error))
        needs = f'needs {sizes[1]} GiB of {sizes[2]} on a chip' if sizes else brief(error)
        raise UserError(
            f'the compiled step does not fit: it {needs}. Set mesh.fsdp, optimizer.accumulate or '
            'model.remat=block, or take a smaller batch_size or more chips.'
        ) from error
