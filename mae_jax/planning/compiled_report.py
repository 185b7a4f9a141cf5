"""Formats what a compiled step holds, communicates and costs, for `mae-jax plan --compile`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax

from mae_jax.planning.bundles import Cycles
from mae_jax.planning.compiled import (
    MODULES,
    OUTSIDE,
    PARTS,
    Collective,
    count_calls,
    count_cycles,
    count_kernels,
    find_collectives,
)
from mae_jax.planning.hlo import parse
from mae_jax.planning.plan import GIB, Plan
from mae_jax.runtime.chips import Chip, usable_share

MIB = 2**20
SMALL = MIB / 100
"""Bytes below which collectives share a line."""


def format_compiled(
    plan: Plan,
    chip: Chip,
    topology: str,
    compiled: jax.stages.Compiled,
    kernels: Mapping[str, Cycles] = MappingProxyType({}),
) -> str:
    """Formats memory, collectives and the estimated speed.

    Args:
      kernels: what `count_kernel_cycles` returns.
    """
    program = parse(compiled.as_text())
    lines = [
        '',
        f'compiled for {chip.name}:{topology}',
        '',
        *_memory_lines(compiled.memory_analysis(), chip),
        '',
        *_collective_lines(find_collectives(program)),
    ]
    if unknown := program.count_unknown_loops():
        lines.append(f'(each of {unknown} loops, whose length XLA does not state, counts once)')
    if chip.is_gpu:
        lines += ['', *_call_lines(count_calls(program))]
    cycles = count_cycles(program, {name: each.cycles for name, each in kernels.items()})
    if cycles and chip.clock:
        lines += ['', *_cycle_lines(cycles), *_kernel_lines(count_kernels(program), kernels)]
        lines += ['', *_speed_lines(plan, chip, sum(cycles.values()))]
    else:
        lines += ['', 'no speed: XLA states no cycles for this chip']
    return '\n'.join(lines)


def _memory_lines(memory: Any, chip: Chip) -> list[str]:
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    sizes = {
        'parameters, optimiser state and batch': memory.argument_size_in_bytes,
        'results that do not replace those': results,
        'temporary: activations, gradients, copies of weights': memory.temp_size_in_bytes,
        'program': memory.generated_code_size_in_bytes,
    }
    share = f', of which JAX takes {usable_share(chip):.0%}' if chip.is_gpu else ''
    sizes[f'in all, of {chip.memory}{share}'] = sum(sizes.values())
    lines = [f'{size / GIB:10.2f}  {name}' for name, size in sizes.items()]
    return ['memory of a device as compiled, GiB', *lines]


def _collective_lines(collectives: list[Collective]) -> list[str]:
    large = [each for each in collectives if each.size >= SMALL]
    lines = [
        f'{each.size / MIB:10,.2f}  {each.times:>5} x  {each.kind:<20}{each.dtype:<6}'
        f'{each.group or "all":>3} devices  {each.place}'
        for each in large
    ]
    small = [each for each in collectives if each.size < SMALL]
    if small:
        size, times = sum(each.size for each in small), sum(each.times for each in small)
        lines.append(f'{size / MIB:10,.2f}  {times:>5} x  small ones')
    return ['collectives of a step, MiB of whole arrays', *(lines or ['      none'])]


def _call_lines(calls: Mapping[str, int]) -> list[str]:
    """Lists whose code runs beside XLA's own: cuBLAS for products, cuDNN for attention."""
    lines = [f'{times:10,}  {name}' for name, times in sorted(calls.items())]
    return ['calls of libraries and of kernels in a step', *(lines or ['      none'])]


def _cycle_lines(cycles: Mapping[tuple[str, str], int]) -> list[str]:
    total = sum(cycles.values())

    def row(values: list[int], name: str) -> str:
        columns = [f'{value / 1e6:10.2f}' for value in values]
        return f'{"".join(columns):>20}{sum(values) / total:>8.0%}  {name}'

    rows = [row([cycles.get((m, part), 0) for m in MODULES], part) for part in PARTS]
    rows += [row([cycles.get(('', part), 0)], part) for part in OUTSIDE]
    return [
        "cycles of a step, millions, estimated by XLA's cost model",
        f'{"".join(f"{module:>10}" for module in MODULES)}{"share":>8}',
        *rows,
        row([total], 'in all'),
    ]


def _kernel_lines(calls: Mapping[str, int], kernels: Mapping[str, Cycles]) -> list[str]:
    """Lists how much of the cycles is in kernels, and how many of those are missing."""
    lines = []
    if kernels:
        cycles = sum(calls[name] * each.cycles for name, each in kernels.items())
        number = sum(calls[name] for name in kernels)
        lines += [
            f'{cycles / 1e6:20.2f}{"":10}of these in {number} calls of kernels, each estimated',
            f'{"":30}by the bundles of its schedule, or by its traffic',
        ]
    if missing := sum(times for name, times in calls.items() if name not in kernels):
        lines.append(f'(without {missing} calls of kernels, whose cycles are not known)')
    if any(each.unknown_loops for each in kernels.values()):
        lines.append('(a loop in a kernel, whose length is not stated, counts once)')
    return lines


def _speed_lines(plan: Plan, chip: Chip, cycles: int) -> list[str]:
    seconds = cycles / chip.clock
    images = plan.batch_size / seconds
    mfu = plan.product_flops / (plan.mesh.size * chip.flops * seconds)
    return [
        "speed, estimated by XLA's cost model, which knows no waiting for collectives",
        f'{seconds:10.4g}  s/step at {chip.clock / 1e9:g} GHz',
        f'{images:10,.0f}  images/s, {images / plan.mesh.size:,.0f} a chip',
        f'{mfu:10.1%}  MFU',
        f'{plan.length.num_steps * seconds / 86400:10.3g}  days',
    ]
