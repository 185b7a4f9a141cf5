"""Plans a run on a machine that is not at hand: memory of a device, operations, days.

    mae-jax plan vit_huge --devices 256
    mae-jax plan vit_huge --devices 8 --chip h100 a100 --mfu 0.35 \\
        --config.mesh.fsdp=8 --config.model.remat=block --config.optimizer.accumulate=4

Needs no accelerator, no data and hardly any memory: everything is computed from shapes. Activations
are an estimate: the arrays that autodiff keeps, before XLA fuses operations.
"""

import argparse

from mae_jax.cli.arguments import Parser, config_of

DEFAULT_CHIPS = ('v4', 'v5e', 'v5p', 'v6e', 'a100', 'h100', 'h200')


def add_arguments(parser: Parser) -> None:
    """Adds the options of the command."""
    parser.add_config()
    parser.add_argument('--devices', required=True, type=int, help='of the whole machine')
    parser.add_argument(
        '--chip',
        nargs='+',
        default=DEFAULT_CHIPS,
        metavar='NAME',
        help=f'unset: {" ".join(DEFAULT_CHIPS)}',
    )
    parser.add_argument(
        '--mfu', type=float, default=0.4, help='share of the peak that is reached; unset: 0.4'
    )
    parser.add_argument(
        '--examples', type=int, help="of an epoch; unset: the data set's, or ImageNet's"
    )


def run(arguments: argparse.Namespace) -> None:
    """Prints the plan of a config."""
    import jax

    from mae_jax.config.files import load_config
    from mae_jax.experiment.inherit import inherit
    from mae_jax.planning.plan import check_mfu, find_data, make_plan
    from mae_jax.planning.report import format_chips, format_plan
    from mae_jax.runtime.chips import named_chip

    jax.config.update('jax_platforms', 'cpu')  # an accelerator of this machine may be in use
    chips = [named_chip(name) for name in arguments.chip]
    check_mfu(arguments.mfu)
    config = inherit(load_config(config_of(arguments), arguments.overrides), '')
    data = find_data(config, arguments.examples)
    plan = make_plan(config, arguments.devices, data)
    print(format_plan(plan, data))
    print(format_chips(plan, chips, arguments.mfu))
