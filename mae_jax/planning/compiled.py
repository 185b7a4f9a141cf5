"""Derives from the text of a compiled step what it communicates, costs, and must not contain."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from mae_jax.planning.hlo import Array, Execution, Instruction, Program
from mae_jax.training.state import ACCUMULATE, OPTIMIZER

COLLECTIVES = (
    'all-reduce',
    'all-gather',
    'reduce-scatter',
    'all-to-all',
    'collective-permute',
    'collective-broadcast',
)
HOST_TRANSFERS = ('infeed', 'outfeed', 'send', 'recv')
PARTS = (
    'attention projections',
    'attention outside projections',
    'MLP',
    'norms',
    'embedding and the rest',
)
"""Parts of encoder and decoder."""


class Collective(NamedTuple):
    """Describes the collectives of one kind, dtype and place, all of which a step executes."""

    kind: str
    dtype: str
    times: int
    """Executions in a step."""
    size: int
    """Bytes of the whole arrays in a step: of what a gather returns, of what a reduction takes."""
    place: str
    """'once a step', 'accumulation loop' or 'loop over blocks'."""


def find_collectives(program: Program) -> list[Collective]:
    """Finds the collectives of a step, the largest first."""
    times, sizes, seen = Counter(), Counter(), set()
    for execution in program.executed():
        place = _place(execution.loops)
        for kind, channel, arrays in _collectives_of(program, execution):
            identity = kind, channel, *arrays
            if identity in seen:  # a piece of one that several fusions overlap with computation
                continue
            seen.add(identity)
            for dtype in {array.dtype for array in arrays}:
                key = kind, dtype, place
                size = sum(array.size for array in arrays if array.dtype == dtype)
                times[key] += execution.times
                sizes[key] += execution.times * size
    found = [Collective(*key[:2], times[key], size, key[2]) for key, size in sizes.items()]
    return sorted(found, key=lambda collective: -collective.size)


def _collectives_of(
    program: Program, execution: Execution
) -> Iterator[tuple[str, str, list[Array]]]:
    """Yields kind, channel and whole arrays of each collective of an instruction."""
    instruction, scope = execution.instruction, program.computations[execution.computation]
    groups = [(scope, (instruction,))]
    if instruction.opcode == 'fusion':
        groups = [(inner, inner) for inner in program.inside(instruction)]
    for scope, members in groups:
        slices = len(members) > 1 and any(each.opcode == 'dynamic-slice' for each in members)
        for each in members:
            if kind := _kind(each):
                arrays = _whole_arrays(kind, each, scope)
                # A reduction of which every device keeps its slice.
                kind = 'reduce-scatter' if kind == 'all-reduce' and slices else kind
                yield kind, _channel(each), arrays


def _kind(instruction: Instruction) -> str | None:
    opcode = instruction.opcode.removesuffix('-start')
    return opcode if opcode in COLLECTIVES else None


def _channel(instruction: Instruction) -> str:
    """Returns the number by which devices know a collective, or its name."""
    match = re.search(r'channel_id=(\d+)', instruction.text)
    return match[1] if match else instruction.name


def _whole_arrays(
    kind: str, instruction: Instruction, scope: tuple[Instruction, ...]
) -> list[Array]:
    if kind == 'reduce-scatter':
        operands = set(instruction.operands)
        return [array for each in scope if each.name in operands for array in each.arrays]
    arrays = list(instruction.arrays)
    if instruction.opcode.endswith('-start') and len(arrays) > 1 and kind != 'all-reduce':
        arrays = arrays[len(instruction.operands) :]  # (operands, results, contexts)
        arrays = arrays[: len(instruction.operands)]
    return arrays


def _place(loops: tuple[Instruction, ...]) -> str:
    if not loops:
        return 'once a step'
    if any(is_accumulation(loop) for loop in loops):
        return 'accumulation loop'
    return 'loop over blocks'


def is_accumulation(loop: Instruction) -> bool:
    """Returns whether a `while` is the loop over micro-batches, and not one inside the model."""
    return re.search(rf'\b{ACCUMULATE}/while$', loop.op_name) is not None


def count_cycles(program: Program) -> dict[tuple[str, str], int]:
    """Adds up XLA's estimated cycles of a step by module and part.

    Returns:
      ('encoder' | 'decoder' | '', part) -> cycles; parts of no module are 'optimizer' and 'rest'.
      Empty where the program states no cycles, as for GPUs.
    """
    cycles = defaultdict(int)
    for instruction, times, _, _ in program.executed():
        if instruction.cycles is not None and instruction.opcode != 'while':
            cycles[part_of(instruction.op_name)] += times * instruction.cycles
    return dict(cycles)


def part_of(op_name: str) -> tuple[str, str]:
    """Returns the module and the part of it that an operation belongs to, by its path of scopes."""
    scopes = re.split(r'[/()]+', op_name)
    module = next((scope for scope in scopes if scope in ('encoder', 'decoder')), '')
    if not module:
        return '', 'optimizer' if OPTIMIZER in scopes else 'rest'
    if 'attention' in scopes:
        return module, PARTS[0 if {'qkv', 'proj'} & set(scopes) else 1]
    if 'mlp' in scopes:
        return module, PARTS[2]
    return module, PARTS[3 if any(s.startswith('norm') for s in scopes) else 4]


def find_host_transfers(program: Program) -> list[str]:
    """Returns the names of instructions that exchange data with the host during a step.

    Memory of the host has space 5 in a layout, and callbacks to Python are custom calls.
    """
    return [
        each.name
        for instructions in program.computations.values()
        for each in instructions
        if each.opcode.removesuffix('-done') in HOST_TRANSFERS
        or 'callback' in each.text
        or re.search(r'S\(5\)', each.kind)
    ]


def find_dtype(program: Program, dtype: str) -> list[str]:
    """Returns the names of instructions with a result of a dtype, such as 'f64'."""
    return [
        each.name
        for instructions in program.computations.values()
        for each in instructions
        if any(array.dtype == dtype for array in each.arrays)
    ]


def count_donated(program: Program) -> int:
    """Returns how many arrays of the result reuse the memory of an argument."""
    match = re.search(r'input_output_alias=\{(.*?)\},? (?=entry_|\w+=|$)', program.header)
    return len(re.findall(r'(?:may|must)-alias', match[1])) if match else 0


def total_size(collectives: list[Collective], **fields: str) -> int:
    """Adds up the bytes of the collectives with these fields."""
    return sum(
        each.size
        for each in collectives
        if all(getattr(each, name) == value for name, value in fields.items())
    )


def share(cycles: Mapping[tuple[str, str], int], key: tuple[str, str]) -> float:
    """Returns the share of a part in all cycles."""
    return cycles.get(key, 0) / sum(cycles.values())
