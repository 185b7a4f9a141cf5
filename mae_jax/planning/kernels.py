"""Estimates the cycles of the Pallas kernels of a compiled step, which XLA's cost model omits.

Each distinct kernel is compiled once more, alone, in a process whose libtpu writes down the final
schedule (`bundles.py` counts it): the option must be set before libtpu is loaded, and the schedule
of a whole step would take gigabytes. A call costs that, or what moving its arrays takes at the
memory's bandwidth, whichever is more: a kernel's pipeline does both at once.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from mae_jax.planning.bundles import Cycles, count_bundles
from mae_jax.planning.compile import topology_devices
from mae_jax.planning.hlo import Array, Instruction, Program, parse_arrays
from mae_jax.runtime.chips import Chip, named_chip

TARGET = 'tpu_custom_call'
"""XLA's name for a call of a Pallas kernel."""
DTYPES = {'f32': 'float32', 'bf16': 'bfloat16', 's32': 'int32', 'u32': 'uint32', 's8': 'int8',
          'u8': 'uint8', 'pred': 'bool', 'f16': 'float16', 's16': 'int16'}  # fmt: skip
"""XLA's names of dtypes -> NumPy's."""

BANDWIDTH = {'v4': 1228e9, 'v5e': 819e9, 'v5p': 2765e9, 'v6e': 1640e9}
"""Bytes a second of a chip's memory, of the vendor's data sheet."""

_ON_CHIP = re.compile(r'(\w+\[[\d,]*\])\{[^}]*S\(1\)\}')
_CALL = re.compile(r'bundle: %\S+ = custom-call\(')


class Kernel(NamedTuple):
    """Describes a kernel as it is called."""

    config: str
    """The program of the kernel and its options, JSON."""
    operands: tuple[Array, ...]
    results: tuple[Array, ...]


def find_kernels(program: Program) -> dict[str, Kernel]:
    """Finds the calls of kernels in a step: names of instructions -> kernels."""
    instructions = [each.instruction for each in program.executed()]
    return {each.name: _kernel(each) for each in instructions if each.is_kernel}


def _kernel(instruction: Instruction) -> Kernel:
    _, _, options = instruction.text.partition('backend_config=')
    options, _ = json.JSONDecoder().raw_decode(options)
    _, _, operands = instruction.text.partition('operand_layout_constraints={')
    operands = operands.partition('frontend_attributes')[0].partition('metadata=')[0]
    config = json.dumps({'custom_call_config': options['custom_call_config']}, sort_keys=True)
    return Kernel(config, parse_arrays(operands), instruction.arrays)


def count_kernel_cycles(program: Program, chip: Chip, topology: str) -> dict[str, Cycles]:
    """Estimates the cycles of a call of each kernel: names of instructions -> cycles.

    Takes some seconds a distinct kernel. Empty for a GPU; kernels whose schedule cannot be had are
    missing.
    """
    kernels = find_kernels(program)
    if not kernels or chip.is_gpu:
        return {}
    distinct = list(dict.fromkeys(kernels.values()))
    counted = dict(zip(distinct, _compile_apart(distinct, chip, topology), strict=True))
    seconds = {name: size / BANDWIDTH[chip.name] for name, size in find_traffic(program).items()}
    return {
        name: cost._replace(cycles=max(cost.cycles, round(seconds[name] * chip.clock)))
        for name, kernel in kernels.items()
        if (cost := counted[kernel])
    }


def find_traffic(program: Program) -> dict[str, int]:
    """Returns the bytes that a call of each kernel moves: names of instructions -> bytes.

    Arrays that XLA keeps in vector memory (space 1 of a layout) are not moved.
    """
    sizes = {}
    for instruction, _, _, computation in program.executed():
        if instruction.is_kernel:
            scope = {each.name: each.kind for each in program.computations[computation]}
            kinds = [scope[name] for name in instruction.operands] + [instruction.kind]
            moved = parse_arrays(_ON_CHIP.sub('', ' '.join(kinds)))
            sizes[instruction.name] = sum(array.size for array in moved)
    return sizes


def _compile_apart(kernels: list[Kernel], chip: Chip, topology: str) -> list[Cycles | None]:
    """Counts the cycles of kernels in a process of its own; None where there is no schedule."""
    with tempfile.TemporaryDirectory() as dump:
        flags = [
            os.environ.get('LIBTPU_INIT_ARGS', ''),
            f'--xla_jf_dump_to={dump}',
            '--xla_jf_dump_llo_text=true',
            '--xla_jf_dump_llo_pass_label_regex=.*final_bundles.*',
        ]
        environ = os.environ | {
            'LIBTPU_INIT_ARGS': ' '.join(flags),
            'JAX_PLATFORMS': 'cpu',
            'JAX_ENABLE_COMPILATION_CACHE': 'false',  # what is not compiled is not written down
            'PYTHONPATH': os.pathsep.join(path or os.getcwd() for path in sys.path),
        }
        task = {'chip': chip.name, 'topology': topology, 'dump': dump, 'kernels': kernels}
        done = subprocess.run(
            [sys.executable, '-m', 'mae_jax.planning.kernels'],
            input=json.dumps(task),
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
        )
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        return [None] * len(kernels)
    return [each and Cycles(*each) for each in json.loads(lines[-1])]


def _compile_alone(task: Mapping[str, Any]) -> Iterable[Cycles | None]:
    """Yields what the kernels of a task cost, by compiling one after the other."""
    device = topology_devices(named_chip(task['chip']), task['topology'])[0]
    for config, operands, results in task['kernels']:
        schedules = set(_schedules(task['dump']))
        try:
            _compile(config, _abstract(operands, device), _abstract(results, None))
            new = [text for path, text in _schedules(task['dump']).items() if path not in schedules]
            yield count_bundles(new[0]) if len(new) == 1 else None
        except (KeyError, ValueError, jax.errors.JaxRuntimeError):
            yield None


def _compile(config: str, operands: list, results: list) -> None:
    call = jax.ffi.ffi_call(
        TARGET, results, custom_call_api_version=1, legacy_backend_config=config
    )
    jax.jit(call).lower(*operands).compile()


def _abstract(arrays: Iterable, device: jax.Device | None) -> list[jax.ShapeDtypeStruct]:
    sharding = SingleDeviceSharding(device) if device else None
    return [
        jax.ShapeDtypeStruct(tuple(shape), np.dtype(DTYPES[dtype]), sharding=sharding)
        for dtype, shape in arrays
    ]


def _schedules(dump: str) -> dict[str, str]:
    """Returns the schedules of custom calls that were written so far: path -> text."""
    paths = Path(dump).glob('*-final_bundles.txt')
    texts = {str(path): path.read_text() for path in paths}
    return {path: text for path, text in texts.items() if _CALL.search(text)}


if __name__ == '__main__':
    print(json.dumps(list(_compile_alone(json.load(sys.stdin)))))
