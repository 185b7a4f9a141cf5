"""Derives from the text of a compiled step what it communicates, costs, and must not contain."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from types import MappingProxyType
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
MODULES = 'encoder', 'decoder'
PARTS = (
    'attention: projections',
    'attention: all else',
    'MLP',
    'norms',
    'embedding, shuffling, residuals',
)
"""Parts of each module."""
OUTSIDE = 'sums over micro-batches', 'optimiser', 'loss and the rest'
"""Parts of no module."""


class Collective(NamedTuple):
    """Describes the collectives of a step that agree in kind, dtype, devices and place."""

    kind: str
    dtype: str
    group: int
    """Number of devices that take part in one; 0 for all."""
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
        for kind, each, arrays in _collectives_of(program, execution):
            identity = kind, _channel(each), *arrays
            if identity in seen:  # a piece of one that several fusions overlap with computation
                continue
            seen.add(identity)
            for dtype in {array.dtype for array in arrays}:
                key = kind, dtype, _group(each), place
                size = sum(array.size for array in arrays if array.dtype == dtype)
                times[key] += execution.times
                sizes[key] += execution.times * size
    found = [Collective(*key[:3], times[key], size, key[3]) for key, size in sizes.items()]
    return sorted(found, key=lambda each: (-each.size, each))


def _collectives_of(
    program: Program, execution: Execution
) -> Iterator[tuple[str, Instruction, list[Array]]]:
    """Yields kind and whole arrays of each collective of an instruction."""
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
                yield kind, each, arrays


def _kind(instruction: Instruction) -> str | None:
    opcode = instruction.opcode.removesuffix('-start')
    return opcode if opcode in COLLECTIVES else None


def _channel(instruction: Instruction) -> str:
    """Returns the number by which devices know a collective, or its name."""
    match = re.search(r'channel_id=(\d+)', instruction.text)
    return match[1] if match else instruction.name


def _group(instruction: Instruction) -> int:
    """Counts the devices of a group of a collective; XLA has three notations for groups."""
    groups = instruction.text.partition('replica_groups=')[2]
    if match := re.match(r'\{\{([\d,]+)\}', groups):
        return len(match[1].split(','))
    if match := re.match(r'\[\d+,(\d+)\]<=', groups):
        return int(match[1])
    if match := re.match(r'mesh\[(.*?)\] ?\{(.*?)\}', groups):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    return 0


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


def count_cycles(
    program: Program, kernels: Mapping[str, int] = MappingProxyType({})
) -> dict[tuple[str, str], int]:
    """Adds up the estimated cycles of a step by module and part.

    Args:
      kernels: the cycles of calls of Pallas kernels by the names of their instructions; XLA states
        those of all else.

    Returns:
      (one of `MODULES`, one of `PARTS`) or ('', one of `OUTSIDE`) -> cycles. Empty where the
      program states none, as for GPUs.
    """
    cycles = defaultdict(int)
    for instruction, times, _, _ in program.executed():
        cost = kernels.get(instruction.name, instruction.cycles)
        if cost is not None and instruction.opcode != 'while':
            cycles[part_of(instruction.op_name)] += times * cost
    return dict(cycles)


def count_kernels(program: Program) -> dict[str, int]:
    """Counts the calls of Pallas kernels in a step: names of instructions -> calls."""
    calls = Counter()
    for instruction, times, _, _ in program.executed():
        if instruction.is_kernel:
            calls[instruction.name] += times
    return calls


def count_calls(program: Program) -> dict[str, int]:
    """Counts the calls of libraries and of kernels that XLA did not write: names -> calls."""
    calls = Counter()
    for instruction, times, _, _ in program.executed():
        if match := re.search(r'custom_call_target="([^"]+)"', instruction.text):
            calls[match[1]] += times
    return calls


def part_of(op_name: str) -> tuple[str, str]:
    """Returns module and part that an operation belongs to, by its path of scopes."""
    scopes = re.split(r'[/()]+', op_name)
    module = next((scope for scope in scopes if scope in MODULES), '')
    if not module:
        if re.search(rf'\b{ACCUMULATE}/while/body/closed_call/add$', op_name):
            return '', OUTSIDE[0]
        return '', OUTSIDE[1 if OPTIMIZER in scopes else 2]
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
