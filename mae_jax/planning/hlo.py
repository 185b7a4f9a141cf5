"""Reads the text of a compiled XLA program: its computations, instructions and loops."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

ITEM_BITS = {'pred': 8, 'c64': 64, 'c128': 128, 'token': 0, 'opaque': 0}
"""Bits of an element of the types whose name does not state them."""

_ARRAY = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\]')
_CALLED = re.compile(r'\b(calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|[^\s,]+)')
_NAME = re.compile(r'%?([\w.\-]+)')


class Array(NamedTuple):
    """Describes an array of a program."""

    dtype: str
    """XLA's name, such as 'bf16'."""
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Returns its bytes, without padding."""
        bits = re.match(r'[a-z]+(\d+)', self.dtype)
        item = ITEM_BITS[self.dtype] if self.dtype in ITEM_BITS else int(bits[1])
        return math.prod(self.shape) * item // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """Describes one operation.

    Attributes:
      kind: type of the result, with its layout.
      arrays: the same without layout; several for a tuple, a nested one flattened.
      arguments: what stands in its parentheses.
      operands: names of instructions of the same computation, its arguments.
      called: attribute, such as 'body' -> names of computations.
      text: the attributes as they stand in the program.
    """

    name: str
    opcode: str
    kind: str
    arrays: tuple[Array, ...]
    arguments: str
    operands: tuple[str, ...]
    called: Mapping[str, tuple[str, ...]]
    text: str

    @property
    def op_name(self) -> str:
        """Returns where it comes from: JAX's path of scopes, or ''."""
        match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.text)
        return match[1] if match else ''

    @property
    def cycles(self) -> int | None:
        """Returns the cycles that XLA's cost model expects of it; None where it states none."""
        match = re.search(r'"estimated_cycles":"(\d+)"', self.text)
        return int(match[1]) if match else None

    @property
    def is_kernel(self) -> bool:
        """Returns whether it calls a Pallas kernel of a TPU."""
        return 'custom_call_target="tpu_custom_call"' in self.text


class Execution(NamedTuple):
    """An instruction with how often a step executes it."""

    instruction: Instruction
    times: int
    loops: tuple[Instruction, ...]
    """The `while` instructions around it, outermost first."""
    computation: str


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      header: its first line, which states donation.
      entry: name of the computation that it begins with.
      computations: name -> instructions in order.
    """

    header: str
    entry: str
    computations: Mapping[str, tuple[Instruction, ...]]

    def executed(self) -> Iterator[Execution]:
        """Yields the instructions that a device schedules, without the insides of fusions."""
        yield from self._executed(self.entry, 1, ())

    def trip_count(self, loop: Instruction) -> int | None:
        """Returns how often the body of a `while` runs; None where the program does not state it.

        The compiler states it, or the loop's condition does, as JAX writes a scan: `i < n`.
        """
        if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text):
            return int(match[1])
        condition = {each.name: each for each in self.computations[loop.called['condition'][0]]}
        last = list(condition.values())[-1]
        bounds = [condition[name] for name in last.operands if name in condition]
        if last.opcode != 'compare' or 'direction=LT' not in last.text or len(bounds) != 2:
            return None
        return int(bounds[1].arguments) if bounds[1].opcode == 'constant' else None

    def count_unknown_loops(self) -> int:
        """Counts the loops whose length is not stated; their bodies count as executed once."""
        loops = [each for each in self.executed() if each.instruction.opcode == 'while']
        return sum(self.trip_count(each.instruction) is None for each in loops)

    def _executed(
        self, computation: str, times: int, loops: tuple[Instruction, ...]
    ) -> Iterator[Execution]:
        for instruction in self.computations[computation]:
            yield Execution(instruction, times, loops, computation)
            inner, count = loops, times
            if instruction.opcode == 'while':
                inner, count = (*loops, instruction), times * (self.trip_count(instruction) or 1)
            elif instruction.opcode not in ('call', 'conditional', 'async-start'):
                continue
            for names in instruction.called.values():
                for name in names:
                    yield from self._executed(name, count, inner)

    def inside(self, fusion: Instruction) -> Iterator[tuple[Instruction, ...]]:
        """Yields the computations of a fusion, and of the fusions in it."""
        for name in fusion.called.get('calls', ()):
            yield self.computations[name]
            for inner in self.computations[name]:
                yield from self.inside(inner)


def parse(text: str) -> Program:
    """Parses what `jax.stages.Compiled.as_text` returns.

    Raises:
      ValueError: there is no entry computation.
    """
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        stripped = line.strip()
        if current is None:
            if stripped.endswith('{') and '->' in stripped:
                is_entry = stripped.startswith('ENTRY ')
                name = _NAME.match(stripped.removeprefix('ENTRY ').strip())[1]
                current = computations[name] = []
                entry = name if is_entry else entry
        elif stripped == '}':
            current = None
        elif ' = ' in stripped:
            current.append(_parse_instruction(stripped))
    if entry is None:
        raise ValueError('The text has no ENTRY computation.')
    return Program(
        text.partition('\n')[0],
        entry,
        {name: tuple(instructions) for name, instructions in computations.items()},
    )


def _parse_instruction(line: str) -> Instruction:
    name, _, rest = line.removeprefix('ROOT ').partition(' = ')
    end = _closing(rest) if rest.startswith('(') else rest.index(' ')
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition('(')
    rest = rest[len(opcode) :]
    end = _closing(rest)
    operands, attributes = rest[1 : end - 1], rest[end:]
    return Instruction(
        name=name.lstrip('%'),
        opcode=opcode.strip(),
        kind=kind,
        arrays=parse_arrays(kind),
        arguments=operands,
        operands=tuple(re.findall(r'%([\w.\-]+)', operands)),
        called={
            key: tuple(_NAME.findall(value.strip('{}')))
            for key, value in _CALLED.findall(attributes)
        },
        text=attributes,
    )


def parse_arrays(kind: str) -> tuple[Array, ...]:
    """Returns the arrays that a text names, such as 'bf16[64,197]{1,0}'."""
    return tuple(
        Array(dtype, tuple(int(size) for size in sizes.split(',') if size))
        for dtype, sizes in _ARRAY.findall(kind)
    )


def _closing(text: str) -> int:
    """Returns the index after the parenthesis that closes the one at the beginning."""
    depth = 0
    for match in re.finditer(r'[()]', text):
        depth += 1 if match[0] == '(' else -1
        if depth == 0:
            return match.end()
    raise ValueError(f'A parenthesis is not closed: {text[:80]}')
