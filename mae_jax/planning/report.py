"""Formats a plan as the text that `mae-jax plan` prints."""

import textwrap
from collections.abc import Sequence

from mae_jax.planning.plan import GIB, Data, Plan, estimate_speed, find_change, fits
from mae_jax.runtime.chips import MEMORY_VARIABLES, Chip, usable_share


def format_plan(plan: Plan, data: Data) -> str:
    """Formats what does not depend on the chips: size, length, memory and operations."""
    return '\n'.join(
        [*_run_lines(plan, data), '', *_memory_lines(plan), '', *_operation_lines(plan)]
    )


def _run_lines(plan: Plan, data: Data) -> list[str]:
    length, shape = plan.length, plan.mesh.shape
    modules = [f'{name} {size:,}' for name, size in sorted(plan.parameters.items(), reverse=True)]
    total = sum(plan.parameters.values())
    size = f'parameters  {total:,} ({", ".join(modules)}), {plan.trained:,} of them trained'
    lines = [
        *textwrap.wrap(size, 80, subsequent_indent=' ' * 12),
        f'devices     {plan.mesh.size}: mesh.data {shape["data"]} x mesh.fsdp {shape["fsdp"]}',
        f'batch       {plan.batch_size:,} images: {plan.accumulate} x {plan.rows} a device',
        f'length      {length.num_steps:,} steps, '
        f'{length.num_steps / length.steps_per_epoch:.1f} epochs of {data.examples:,} images',
    ]
    if data.problem:
        problem = data.problem.split(';')[0].rstrip('.')
        note = f"(ImageNet's number, or give --examples: {problem})"
        lines += textwrap.wrap(note, 80, initial_indent=' ' * 12, subsequent_indent=' ' * 12)
    return lines


def _memory_lines(plan: Plan) -> list[str]:
    memory = plan.memory
    sizes = {
        'parameters': memory.parameters,
        'optimiser state': memory.optimizer_state,
        'gradients': memory.gradients,
        'batch': memory.batch,
        'copies of weights, cast, gathered or stacked': memory.weight_copies,
        'activations kept for the backward pass before XLA fuses: an estimate': memory.activations,
        'in all': memory.total,
    }
    lines = [f'{size / GIB:10.2f}  {name}' for name, size in sizes.items()]
    return ['memory of a device, GiB', *lines]


def _operation_lines(plan: Plan) -> list[str]:
    image = plan.product_flops / plan.batch_size
    return [
        'floating-point operations of a step',
        f'{plan.product_flops:10.3e}  in matrix products, {image / 1e9:.1f} G an image',
        f'{plan.xla_flops:10.3e}  in all, by XLA: also elementwise ones, the optimiser and',
        '            what the backward pass computes again',
    ]


def format_chips(plan: Plan, chips: Sequence[Chip], mfu: float) -> str:
    """Formats a row for each chip, and a warning for each that has too little memory."""
    lines = ['', f'at {mfu:.0%} of the peak in bfloat16 (MFU)']
    lines += ['chip          GiB   fits     s/step     images/s      days']
    for chip in chips:
        speed, fit = estimate_speed(plan, chip, mfu), 'yes' if fits(plan, chip) else 'NO'
        lines.append(
            f'{chip.name:<12}{chip.memory:>5}   {fit:<5}{speed.step_seconds:>10.4g}'
            f'{speed.images_per_second:>13,.0f}{speed.days:>10.3g}'
        )
    lines += [format_warning(plan, chip) for chip in chips if not fits(plan, chip)]
    return '\n'.join(lines)


def format_warning(plan: Plan, chip: Chip) -> str:
    """Formats the warning that a run does not fit on a chip, with what to change."""
    variable = f' ({MEMORY_VARIABLES[-1]})' if chip.is_gpu else ''
    warning = (
        f'warning: {chip.name} has {chip.memory} GiB, of which a run can use '
        f'{usable_share(chip):.0%}{variable}, and this takes {plan.memory.total / GIB:.1f}: '
    )
    remat = '' if plan.remat == 'block' else 'try model.remat=block, or '
    change = find_change(plan, chip)
    if change is None:
        return f'{warning}{remat}take a smaller batch_size, more devices or other chips.'
    fsdp, accumulate, needed = change
    settings = {'mesh.fsdp': (plan.mesh.shape['fsdp'], fsdp)}
    settings |= {'optimizer.accumulate': (plan.accumulate, accumulate)}
    changed = ' '.join(f'{field}={new}' for field, (old, new) in settings.items() if new != old)
    return f'{warning}{remat}set {changed} (about {needed / GIB:.1f} GiB).'
