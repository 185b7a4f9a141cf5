"""Compiles the step of a run for chips that this machine lacks, with their own compilers."""

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
from mae_jax.planning.gpu_target import GPU_TARGETS, target_config
from mae_jax.planning.plan import Run, loaded_batch
from mae_jax.runtime.chips import Chip
from mae_jax.runtime.library_noise import discarded_stderr
from mae_jax.runtime.xla_flags import gpu_options
from mae_jax.training.state import jit_step

_INSTALL_LIBTPU = f"pip install 'jax[tpu]=={jax.__version__}'"


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
"""TPUs that can be compiled for."""
GPU_OPTIONS = {
    # Without a GPU none of Triton's tile sizes can be tried.
    'xla_gpu_enable_triton_gemm': False,
    'xla_gpu_autotune_level': 0,
}


def topology_devices(chip: Chip, topology: str) -> list[jax.Device]:
    """Returns devices that programs can be compiled for, not run on.

    Args:
      topology: of TPUs the chips along each axis, such as '2x2' or '4x4x8'; of GPUs hosts x GPUs
        of a host, such as '2x8'.

    Raises:
      UserError: there is no compiler for the chip, or it has no such topology.
    """
    if chip.name in SLICES:
        return _tpus(chip, topology)
    if chip.name in GPU_TARGETS:
        return _gpus(chip, topology)
    known = ', '.join([*SLICES, *GPU_TARGETS])
    raise UserError(f'--compile does not know {chip.name}: choose --chip {known}.')


def _tpus(chip: Chip, topology: str) -> list[jax.Device]:
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
            f'--compile for {chip.name} needs its compiler, and no TPU: {_INSTALL_LIBTPU}.'
        )
    # It uses no TPU, and need not wait for a process that does, nor keep one from it.
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    try:
        with discarded_stderr():
            return topologies.get_topology_desc(
                f'{chip.name}:{topology}', platform='tpu', **slices.options
            ).devices
    except jax.errors.JaxRuntimeError as error:
        if 'INVALID_ARGUMENT' in str(error):
            raise refused from error
        raise UserError(f'libtpu does not start ({brief(error)}).') from error


def _gpus(chip: Chip, topology: str) -> list[jax.Device]:
    if not re.fullmatch(r'[1-9]\d{0,3}x[1-9]\d?', topology):
        raise UserError(
            f'--topology {topology} is none of {chip.name}: give hosts x GPUs of a host, as 1x8.'
        )
    try:
        with discarded_stderr():
            return topologies.get_topology_desc(
                platform='cuda',
                topology=f'1x{topology}',  # slices first
                target_config=target_config(chip.name, chip.device_kinds[0]),
            ).devices
    except (NotImplementedError, RuntimeError) as error:  # JAX knows no such platform
        raise UserError(
            f"--compile for {chip.name} needs its compiler, and no GPU: pip install 'jax[cuda13]' "
            f'({brief(error)}).'
        ) from error


def compile_step(run: Run) -> jax.stages.Compiled:
    """Compiles the step that `run` trains with, as the loop does: layouts, donation and options.

    Args:
      run: on a mesh of `topology_devices`.

    Raises:
      UserError: the program needs more memory than the chip has, or JAX cannot read it because the
        compiler is of another version.
    """
    state, options = run.state, None
    if run.mesh.devices.flat[0].platform == 'gpu':
        options = GPU_OPTIONS | gpu_options()
    step = jit_step(make_run_step(run.config, run.task, run.optimizer), run.mesh, state)
    lowered = step.lower(state, loaded_batch(run.config, run.task))
    try:
        with discarded_stderr():
            return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if re.search(r'RET_CHECK failure \(\S*xla/hlo/ir/', str(error)):
            raise UserError(
                f'JAX {jax.__version__} cannot read what this compiler wrote ({brief(error)}): '
                f'install the one of its own version, for TPUs {_INSTALL_LIBTPU}.'
            ) from error
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        sizes = re.search(r'Used ([\d.]+)G of ([\d.]+)G hbm', str(error))
        needs = f'needs {sizes[1]} GiB of {sizes[2]} on a chip' if sizes else brief(error)
        raise UserError(
            f'the compiled step does not fit: it {needs}. Set mesh.fsdp, optimizer.accumulate or '
            'model.remat=block, or take a smaller batch_size or more chips.'
        ) from error
