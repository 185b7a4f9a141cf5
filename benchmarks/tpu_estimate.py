"""Compares the training step with its earlier self and with peers on TPUs that are not here.

    python benchmarks/tpu_estimate.py --target v5e:2x2 v5p:2x2x1 v6e:2x2 \\
        --model vit_base:64 vit_large:64 finetune_base:32 finetune_large:32 \\
        --before=path/to/a/checkout/of/main \\
        --peer=KAIST=benchmarks/peers/kaist.py:pretrain@path/to/MaskedAutoencoder-Jax/src

Each contender's step is compiled by libtpu (pip install "jax[tpu]") with the same number of images
a chip, one after the other, and prints a Markdown table by part as soon as it has a model's. Cycles
are XLA's own estimates, for Pallas kernels the bundles of their schedules times the iterations of
their loops. Nothing is cached: a step takes a few minutes on two cores.

A peer is `NAME=FILE:FUNCTION[@PATH]`. The function takes the config of the model that it is
compared with (`ml_collections.ConfigDict`, its batch size that of all chips) and returns (step,
state, batch), of which the last two are trees of `jax.ShapeDtypeStruct` and `step(state, batch)`
returns the new state and anything else; it raises NotImplementedError for a model that it has not.
`SCOPES` in its file names the peer's modules as this project does: regular expressions of a whole
scope -> 'encoder', 'decoder', 'attention', 'qkv', 'proj', 'mlp', 'norm' or 'optimizer'. PATH goes
in front of the module search path.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from measure import markdown

from mae_jax.planning.compiled import MODULES, OUTSIDE, PARTS, count_cycles, count_kernels
from mae_jax.planning.hlo import parse
from mae_jax.planning.kernels import count_kernel_cycles
from mae_jax.runtime.chips import Chip, named_chip

HERE = Path(__file__).parent
KEYS = [(module, part) for module in MODULES for part in PARTS] + [('', part) for part in OUTSIDE]


class Contender(NamedTuple):
    """Describes whose step is compiled."""

    name: str
    path: str = ''
    """What goes in front of the module search path."""
    overrides: tuple[str, ...] = ()
    peer: str = ''
    """'file.py:function' of another implementation."""


class Estimate(NamedTuple):
    """Holds what a step costs a chip."""

    cycles: dict[tuple[str, str], int]
    kernels: int
    """Cycles of Pallas kernels, which are part of `cycles`."""
    missing: int
    """Calls of kernels whose cycles are not known."""
    flops: float
    temporary: int

    @property
    def total(self) -> int:
        """Returns the cycles of a step."""
        return sum(self.cycles.values())


def compile_contender(
    contender: Contender, model: str, images: int, chip: Chip, topology: str
) -> Estimate | None:
    """Compiles a step in a process of its own; None where it cannot be compiled."""
    paths = [contender.path, *(path or os.getcwd() for path in sys.path[1:])]
    environ = os.environ | {
        'PYTHONPATH': os.pathsep.join(filter(None, paths)),
        'JAX_PLATFORMS': 'cpu',
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, 'result.json')
        task = {
            'chip': chip.name,
            'topology': topology,
            'model': model,
            'images': images,
            'overrides': contender.overrides,
            'peer': contender.peer,
            'out': str(out),
        }
        done = subprocess.run(
            [sys.executable, str(HERE / 'tpu_estimate_worker.py')],
            input=json.dumps(task),
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines() or ['no message']
            errors = [line for line in lines if re.match(r'[\w.]+(Error|Exception)\b', line)]
            reason = (errors or lines)[-1][:300]  # libtpu writes much that means nothing
            print(f'{contender.name}, {model}: {reason}', file=sys.stderr, flush=True)
            return None
        return estimate(json.loads(out.read_text()), chip, topology)


def estimate(result: dict, chip: Chip, topology: str) -> Estimate:
    """Adds up what a compiled program costs by part."""
    program = parse(rename_scopes(result['text'], result['scopes']))
    kernels = count_kernel_cycles(program, chip, topology)
    calls = count_kernels(program)
    cycles = {name: each.cycles for name, each in kernels.items()}
    return Estimate(
        cycles=count_cycles(program, cycles),
        kernels=sum(calls[name] * each for name, each in cycles.items()),
        missing=sum(times for name, times in calls.items() if name not in kernels),
        flops=result['flops'],
        temporary=result['temporary'],
    )


def rename_scopes(text: str, scopes: dict[str, str]) -> str:
    """Replaces scopes in the `op_name`s of a program: {regular expression: new name}."""

    def rename(scope: re.Match) -> str:
        names = (new for old, new in scopes.items() if re.fullmatch(old, scope[0]))
        return next(names, scope[0])

    return re.sub(
        r'(?<=op_name=")[^"]*', lambda name: re.sub(r'[^/()]+', rename, name[0]), text
    )  # fmt: skip


def rows(estimates: Sequence[Estimate | None], chip: Chip, images: int) -> list[list[str]]:
    """Formats the rows of a table: parts, sums, speed and memory of each contender."""

    def row(name: str, cell) -> list[str]:
        return [name, *('' if each is None else cell(each) for each in estimates)]

    def millions(cycles: int) -> str:
        return f'{cycles / 1e6:.2f}'

    def rate(each: Estimate) -> float:
        return chip.clock / each.total

    table = [
        row(': '.join(filter(None, key)), lambda each, key=key: millions(each.cycles.get(key, 0)))
        for key in KEYS
        if any(each and each.cycles.get(key) for each in estimates)
    ]
    table.append(row('**in all, M cycles**', lambda each: f'**{millions(each.total)}**'))
    table.append(row('of these in kernels', lambda each: millions(each.kernels)))
    if any(each and each.missing for each in estimates):
        table.append(row('calls of kernels that are not in it', lambda each: f'{each.missing}'))
    table.append(row('images/s a chip', lambda each: f'{images * rate(each):,.0f}'))
    table.append(row('MFU', lambda each: f'{each.flops * rate(each) / chip.flops:.1%}'))
    table.append(row('temporary memory, GiB', lambda each: f'{each.temporary / 2**30:.2f}'))
    return table


def contenders(args: argparse.Namespace) -> list[Contender]:
    """Returns who is compared: the version before, this one and its variants, then peers."""
    found = [Contender('before', str(Path(args.before).resolve()))] if args.before else []
    for text in args.ours:
        name, _, fields = text.partition('=')
        found.append(Contender(name, overrides=tuple(filter(None, fields.split(',')))))
    for text in args.peer:
        name, _, place = text.partition('=')
        place, _, path = place.partition('@')
        found.append(Contender(name, path=path and str(Path(path).resolve()), peer=place))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--target', nargs='+', default=['v5e:2x2'], metavar='CHIP:TOPOLOGY')
    parser.add_argument(
        '--model',
        nargs='+',
        default=['vit_base:64', 'vit_large:64', 'finetune_base:32', 'finetune_large:32'],
        metavar='CONFIG:IMAGES',
        help='config, and images a chip',
    )
    parser.add_argument('--before', help="another checkout of this project, compiled as 'before'")
    parser.add_argument(
        '--ours',
        nargs='*',
        default=['now='],
        metavar='NAME=[FIELD=VALUE,...]',
        help="this checkout with fields changed, such as 'plain=model.attention=plain'",
    )
    parser.add_argument('--peer', nargs='*', default=[], metavar='NAME=FILE:FUNCTION[@PATH]')
    args = parser.parse_args()
    for target in args.target:
        name, _, topology = target.partition(':')
        chip = named_chip(name)
        for text in args.model:
            model, _, images = text.partition(':')
            estimates = {
                each.name: compile_contender(each, model, int(images), chip, topology)
                for each in contenders(args)
            }
            head = [f'{model}, {images} images a chip, {target}', *estimates]
            print(markdown([], head, rows(list(estimates.values()), chip, int(images))))
            print(flush=True)


if __name__ == '__main__':
    main()
