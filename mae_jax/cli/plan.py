"""What a run needs of a machine that is not here: memory of a device, operations, days.

    mae-jax plan --config=configs/vit_huge.py --devices 256
    mae-jax plan --config=configs/vit_huge.py --devices 8 --chip h100 a100 --mfu 0.35 \\
        --set mesh.fsdp=8 model.remat=block optimizer.accumulate=4

Takes no accelerator, no data and no memory to speak of: all is computed from shapes. Activations
are an estimate: what autodiff keeps, before XLA fuses operations.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mae_jax.planning.plan import Data, Plan
    from mae_jax.runtime.chips import Chip

CHIPS = ('v4', 'v5e', 'v5p', 'v6e', 'a100', 'h100', 'h200')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument('--config', required=True, metavar='FILE', help='configs/vit_huge.py')
    parser.add_argument('--devices', required=True, type=int, help='of the whole machine')
    parser.add_argument(
        '--chip', nargs='+', default=CHIPS, metavar='NAME', help=f'unset: {" ".join(CHIPS)}'
    )
    parser.add_argument(
        '--mfu', type=float, default=0.4, help='share of the peak that is reached; unset: 0.4'
    )
    parser.add_argument(
        '--examples', type=int, help="of an epoch; unset: the data set's, or ImageNet's"
    )
    parser.add_argument(
        '--set', nargs='+', default=[], action='extend', metavar='FIELD=VALUE', help='of the config'
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    import jax

    from mae_jax.config.fields import apply_settings
    from mae_jax.config.files import load_config
    from mae_jax.experiment.inherit import inherit
    from mae_jax.planning.plan import check_mfu, find_data, make_plan
    from mae_jax.runtime.chips import named_chip

    jax.config.update('jax_platforms', 'cpu')  # an accelerator of this machine may be in use
    chips = [named_chip(name) for name in arguments.chip]
    check_mfu(arguments.mfu)
    config = load_config(arguments.config)
    apply_settings(config, arguments.set)
    config = inherit(config, '')
    data = find_data(config, arguments.examples)
    plan = make_plan(config, arguments.devices, data)
    print(describe(plan, data))
    print(describe_chips(plan, chips, arguments.mfu))


def describe(plan: 'Plan', data: 'Data') -> str:
    """What does not depend on the chips."""
    from mae_jax.planning.plan import GIB

    length, memory, shape = plan.length, plan.memory, plan.mesh.shape
    parts = [f'{name} {size:,}' for name, size in sorted(plan.parameters.items(), reverse=True)]
    total = sum(plan.parameters.values())
    lines = [
        f'parameters  {total:,} ({", ".join(parts)}), {plan.trained:,} of them trained',
        f'devices     {plan.mesh.size}: mesh.data {shape["data"]} x mesh.fsdp {shape["fsdp"]}',
        f'batch       {plan.batch_size:,} images: {plan.accumulate} x {plan.rows} a device',
        f'length      {length.num_steps:,} steps, '
        f'{length.num_steps / length.steps_per_epoch:.1f} epochs of {data.examples:,} images',
    ]
    if data.problem:
        problem = data.problem.split(';')[0].rstrip('.')
        lines.append(f"            (ImageNet's number, or give --examples: {problem})")
    told = {
        'parameters': memory.parameters,
        'optimiser state': memory.optimizer_state,
        'gradients': memory.gradients,
        'batch': memory.batch,
        'copies of weights, cast, gathered or stacked': memory.weight_copies,
        'activations kept for the backward pass, before XLA fuses: an estimate': memory.activations,
        'in all': memory.total,
    }
    lines += ['', 'memory of a device, GiB']
    lines += [f'{size / GIB:10.2f}  {name}' for name, size in told.items()]
    image = plan.product_flops / plan.batch_size
    lines += ['', 'floating-point operations of a step']
    lines += [f'{plan.product_flops:10.3e}  in matrix products, {image / 1e9:.1f} G an image']
    lines += [f'{plan.xla_flops:10.3e}  in all, by XLA: also elementwise ones, the optimiser and']
    lines += ['            what the backward pass computes again']
    return '\n'.join(lines)


def describe_chips(plan: 'Plan', chips: Sequence['Chip'], mfu: float) -> str:
    """A row for each chip, and a warning for each that has not memory enough."""
    from mae_jax.planning.plan import estimate_speed, fits

    lines = ['', f'at {mfu:.0%} of the peak in bfloat16 (MFU)']
    lines += ['chip          GiB   fits     s/step     images/s      days']
    for chip in chips:
        speed, fit = estimate_speed(plan, chip, mfu), 'yes' if fits(plan, chip) else 'NO'
        lines.append(
            f'{chip.name:<12}{chip.memory:>5}   {fit:<5}{speed.step_seconds:>10.4g}'
            f'{speed.images_per_second:>13,.0f}{speed.days:>10.3g}'
        )
    lines += [warning(plan, chip) for chip in chips if not fits(plan, chip)]
    return '\n'.join(lines)


def warning(plan: 'Plan', chip: 'Chip') -> str:
    """That it does not fit, and what to change."""
    from mae_jax.planning.plan import FILL, GIB, find_change

    told = (
        f'warning: {chip.name} has {chip.memory} GiB, of which a run can use {FILL:.0%}, and this '
        f'takes {plan.memory.total / GIB:.1f}: '
    )
    remat = '' if plan.remat == 'block' else 'try model.remat=block, or '
    change = find_change(plan, chip)
    if change is None:
        return f'{told}{remat}take a smaller batch_size, more devices or other chips.'
    fsdp, accumulate, needed = change
    settings = {'mesh.fsdp': (plan.mesh.shape['fsdp'], fsdp)}
    settings |= {'optimizer.accumulate': (plan.accumulate, accumulate)}
    changed = ' '.join(f'{field}={new}' for field, (old, new) in settings.items() if new != old)
    return f'{told}{remat}set {changed} (about {needed / GIB:.1f} GiB).'
