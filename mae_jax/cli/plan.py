"""Plans a run on a machine that is not at hand: memory of a device, operations, days.

    mae-jax plan vit_huge --devices 256
    mae-jax plan vit_huge --devices 8 --chip h100 a100 --mfu 0.35 \\
        --config.mesh.fsdp=8 --config.model.remat=block --config.optimizer.accumulate=4

Needs no accelerator, no data and hardly any memory: everything is computed from shapes. Activations
are an estimate: the arrays that autodiff keeps, before XLA fuses operations.

    mae-jax plan vit_large --compile --chip v5e --topology 2x2 --config.batch_size=256

compiles the step for these chips in a few minutes, also where there are none, with the compiler of
TPUs (pip install 'jax[tpu]') or H100s (pip install 'jax[cuda13]', --topology 1x8: hosts x GPUs),
and reports from the compiled program: memory, collectives, and on TPUs the speed that XLA's cost
model expects.
"""

import argparse
import sys
from typing import TYPE_CHECKING

from mae_jax.cli.arguments import Parser, config_of
from mae_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from mae_jax.planning.plan import Data
    from mae_jax.runtime.chips import Chip

DEFAULT_CHIPS = ('v4', 'v5e', 'v5p', 'v6e', 'a100', 'h100', 'h200')


def add_arguments(parser: Parser) -> None:
    """Adds the options of the command."""
    parser.add_config()
    parser.add_argument('--devices', type=int, help='of the whole machine; with --compile unset')
    parser.add_argument(
        '--chip',
        nargs='+',
        metavar='NAME',
        help=f'unset: {" ".join(DEFAULT_CHIPS)}; one with --compile',
    )
    parser.add_argument(
        '--mfu', type=float, default=0.4, help='share of the peak that is reached; unset: 0.4'
    )
    parser.add_argument(
        '--examples', type=int, help="of an epoch; unset: the data set's, or ImageNet's"
    )
    parser.add_argument(
        '--compile', action='store_true', help='compile the step for one kind of chip'
    )
    parser.add_argument(
        '--topology',
        help='with --compile: TPUs along each axis, such as 2x2; hosts x GPUs, such as 1x8',
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints the plan of a config."""
    check_arguments(arguments)
    import jax

    from mae_jax.config.files import load_config
    from mae_jax.experiment.inherit import inherit
    from mae_jax.planning.plan import check_mfu, find_data, make_plan
    from mae_jax.planning.report import format_chips, format_plan
    from mae_jax.runtime.chips import named_chip

    jax.config.update('jax_platforms', 'cpu')  # an accelerator of this machine may be in use
    chips = [named_chip(name) for name in arguments.chip or DEFAULT_CHIPS]
    check_mfu(arguments.mfu)
    config = inherit(load_config(config_of(arguments), arguments.overrides), '')
    data = find_data(config, arguments.examples)
    if arguments.compile:
        print_compiled(config, data, chips[0], arguments.topology)
        return
    plan = make_plan(config, arguments.devices, data)
    print(format_plan(plan, data))
    print(format_chips(plan, chips, arguments.mfu))


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raises a UserError for a combination of arguments that does not work."""
    if not arguments.compile:
        if arguments.devices is None:
            raise UserError('the following arguments are required: --devices, or --compile.')
        if arguments.topology:
            raise UserError('--topology works with --compile alone: give --devices.')
    elif not arguments.topology or len(arguments.chip or ()) != 1 or arguments.devices is not None:
        raise UserError(
            '--compile takes one chip and its topology, and no --devices: '
            '--compile --chip v5e --topology 2x2.'
        )


def print_compiled(config: 'ConfigDict', data: 'Data', chip: 'Chip', topology: str) -> None:
    """Prints the plan for a topology, then what its compiled step shows."""
    from mae_jax.planning.compile import compile_step, topology_devices
    from mae_jax.planning.compiled_report import format_compiled
    from mae_jax.planning.hlo import parse
    from mae_jax.planning.kernels import count_kernel_cycles
    from mae_jax.planning.plan import make_plan, make_run
    from mae_jax.planning.report import format_plan
    from mae_jax.training.sharding import make_mesh

    devices = topology_devices(chip, topology)
    plan = make_plan(config, len(devices), data)
    print(format_plan(plan, data), flush=True)
    print('compiling, which takes a few minutes ...', file=sys.stderr, flush=True)
    run = make_run(config, make_mesh(config.mesh.fsdp, devices), data)
    compiled = compile_step(run)
    kernels = count_kernel_cycles(parse(compiled.as_text()), chip, topology)
    print(format_compiled(plan, chip, topology, compiled, kernels))
