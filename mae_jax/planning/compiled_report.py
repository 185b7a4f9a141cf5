"""Formats what a compiled step holds, communicates and costs, for `mae-jax plan --compile`."""

from collections.abc import Mapping

import jax

from mae_jax.planning.compiled import PARTS, Collective, count_cycles, find_collectives
from mae_jax.planning.hlo import parse
from mae_jax.planning.plan import GIB, Plan
from mae_jax.runtime.chips import Chip

MIB = 2**20


def format_compiled(plan: Plan, chip: Chip, topology: str, compiled: jax.stages.Compiled) -> str:
    """Formats memory, collectives and XLA's own estimate of the speed."""
    program = parse(compiled.as_text())
    lines = [
        '',
        f'compiled for {chip.name}:{topology}',
        '',
        *_memory_lines(compiled.memory_analysis(), chip),
        '',
        *_collective_lines(find_collectives(program)),
    ]
    if (cycles := count_cycles(program)) and chip.clock:
        lines += ['', *_cycle_lines(cycles), '', *_speed_lines(plan, chip, sum(cycles.values()))]
    return '\n'.join(lines)


def _memory_lines(memory: jax.stages.CompiledMemoryStats, chip: Chip) -> list[str]:
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    sizes = {
        'parameters, optimiser state and batch': memory.argument_size_in_bytes,
        'results, as far as they do not replace those': results,
        'temporary: activations, gradients, copies of weights': memory.temp_size_in_bytes,
        'program': memory.generated_code_size_in_bytes,
    }
    sizes[f'in all, of {chip.memory}'] = sum(sizes.values())
    lines = [f'{size / GIB:10.2f}  {name}' for name, size in sizes.items()]
    return ['memory of a device, GiB', *lines]


def _collective_lines(collectives: list[Collective]) -> list[str]:
    if not collectives:
        return ['collectives of a step: none']
    lines = [
        f'{each.size / MIB:10,.2f}  {each.times:>5} x  {each.kind:<20}{each.dtype:<6}{each.place}'
        for each in collectives
    ]
    return ['collectives of a step, MiB of whole arrays', *lines]


def _cycle_lines(cycles: Mapping[tuple[str, str], int]) -> list[str]:
    total = sum(cycles.values())
    modules = [name for name in ('encoder', 'decoder') if any(key[0] == name for key in cycles)]
    rows = [(module, part) for module in modules for part in PARTS]
    rows += [('', 'optimizer'), ('', 'rest')]
    lines = ["cycles of a step, millions: estimated by XLA's cost model"]
    for key in rows:
        name = ' '.join(filter(None, key)).replace('optimizer', 'optimiser')
        lines.append(
            f'{cycles.get(key, 0) / 1e6:10.2f}  {cycles.get(key, 0) / total:>4.0%}  {name}'
        )
    return [*lines, f'{total / 1e6:10.2f}        in all']


def _speed_lines(plan: Plan, chip: Chip, cycles: int) -> list[str]:
    seconds = cycles / chip.clock
    images = plan.batch_size / seconds
    mfu = plan.product_flops / (plan.mesh.size * chip.flops * seconds)
    return [
        "speed, estimated by XLA's cost model: without waiting for collectives or memory",
        f'{seconds:10.4g}  s/step at {chip.clock / 1e9:g} GHz',
        f'{images:10,.0f}  images/s, {images / plan.mesh.size:,.0f} a chip',
        f'{mfu:10.1%}  MFU',
        f'{plan.length.num_steps * seconds / 86400:10.3g}  days',
    ]
