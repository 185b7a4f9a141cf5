"""Compares the rule of `mae_jax/config/recipe.py` with its neighbours, as a Markdown table.

    python benchmarks/recipes.py linprobe --init_from=runs/quickstart --seeds 0 1 2
    python benchmarks/recipes.py finetune --init_from=runs/folder_laptop --set dataset.path=photos

Runs a protocol as the rule has it, then with learning rate, batch size and epochs larger and
smaller, one at a time; a smaller batch keeps the number of epochs. The last line of a linear probe
is scikit-learn's logistic regression on the same features. `--set` changes fields of all runs.
Finished runs in `--out` are not repeated; features are computed once for all linear probes.
"""

import argparse
import contextlib
import io
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mae_jax import run
from mae_jax.config.fields import apply_overrides
from mae_jax.config.files import load_config
from mae_jax.evaluation.probe import accuracies
from mae_jax.experiment import cached_features
from mae_jax.experiment.inherit import inherit
from mae_jax.experiment.setup import Setup, make_setup
from mae_jax.experiment.starting_state import starting_state

PROTOCOLS = ('linprobe', 'finetune', 'partial')


def grid(config: ConfigDict, examples: int) -> Iterator[tuple[str, ConfigDict]]:
    """Yields name and config of the rule, whose fields are all set, and of its neighbours."""
    yield 'the rule', config
    for factor in (1 / 3, 3):
        other = config.copy_and_resolve_references()
        other.optimizer.base_lr *= factor
        yield f'learning rate x {factor:.2g}', other
    for factor in (0.5, 2):
        other = config.copy_and_resolve_references()
        other.batch_size = int(config.batch_size * factor)
        # The learning rate that the rule has for that batch: constant, or with its root.
        power = 1 if config.trained == 'head' else 0.5
        other.optimizer.base_lr *= factor**-power
        if 8 <= other.batch_size <= examples:
            yield f'batch x {factor:g}', other
    for factor in (0.5, 2):
        other = config.copy_and_resolve_references()
        other.num_epochs *= factor
        other.optimizer.warmup_epochs *= factor
        yield f'epochs x {factor:g}', other


def top1(config: ConfigDict, workdir: Path) -> float:
    """Runs a config where it has not been run, and returns its last held-out top-1."""
    metrics = workdir / 'metrics.jsonl'
    if not (workdir / 'model_card.md').exists():
        with contextlib.redirect_stdout(io.StringIO()):
            run(config, str(workdir))
    lines = map(json.loads, metrics.read_text().splitlines())
    return [line['eval/top1'] for line in lines if 'eval/top1' in line][-1]


def remembering(encode_split: Callable[..., tuple]) -> Callable[..., tuple]:
    """Returns an `encode_split` that encodes a split once: all runs have the same encoder."""
    features = {}

    def once(*args: Any) -> tuple:
        identity = args[3].identity
        if identity not in features:
            features[identity] = encode_split(*args)
        return features[identity]

    return once


def logistic(config: ConfigDict) -> float:
    """Returns the accuracy of scikit-learn's logistic regression on the features of the probe."""

    class Nothing:
        def restore(self, target: object) -> None:
            return None

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        setup = make_setup(inherit(config, folder), folder)
        setup = cached_features.with_cached_features(setup, starting_state(setup, Nothing()))
    splits = setup.source, setup.held_out
    arrays = [np.asarray(x) for s in splits for x in (s.images, s.labels)]
    neighbours = min(20, len(arrays[0]))
    return accuracies(*arrays, neighbours=neighbours, shots=())['linear']


def measure(name: str, seeds: list[int], of_seed: Callable[[int], float]) -> list[float]:
    """Measures every seed, and prints the row of the table."""
    values = [of_seed(seed) for seed in seeds]
    spread = f' ({min(values):.3f} - {max(values):.3f})' if len(values) > 1 else ''
    print(f'| {name} | {np.mean(values):.3f}{spread} |', flush=True)
    return values


def describe(setup: Setup) -> str:
    """Returns what the rule chose."""
    config = setup.config
    peak = config.optimizer.base_lr * config.batch_size / 256
    return (
        f'{len(setup.source):,} images, {len(setup.held_out):,} held out; batch '
        f'{config.batch_size}, {setup.length.num_steps:,} steps ({config.num_epochs:.3g} epochs), '
        f'learning rate {peak:.1e}, warm-up {setup.length.warmup_steps:,} steps'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('protocol', choices=PROTOCOLS)
    parser.add_argument('--init_from', required=True, help='work directory of the pretraining')
    parser.add_argument('--out', default='runs/recipes', type=Path)
    parser.add_argument('--seeds', nargs='+', type=int, default=[0])
    parser.add_argument('--cells', type=int, default=math.inf, help='how many rows; unset: all')
    parser.add_argument('--set', nargs='+', default=[], action='extend', metavar='FIELD=VALUE')
    options = parser.parse_args()

    cached_features.encode_split = remembering(cached_features.encode_split)
    config = load_config(f'configs/{options.protocol}.py')
    config.init_from = options.init_from
    apply_overrides(config, options.set)
    with contextlib.redirect_stdout(io.StringIO()):
        setup = make_setup(inherit(config, ''), '')
    print(f'{options.protocol}: {describe(setup)}\n\n| | top-1 |\n|---|---|')
    for number, (name, cell) in enumerate(grid(setup.config, len(setup.source))):
        if number < options.cells:
            folder = options.out / name.replace(' ', '_').replace('/', '_')

            def of_seed(seed: int, cell: ConfigDict = cell, folder: Path = folder) -> float:
                cell.seed = seed
                return top1(cell, folder / f'seed{seed}')

            measure(name, options.seeds, of_seed)
    if setup.task.caches_features:
        measure('logistic regression', [0], lambda seed: logistic(config))


if __name__ == '__main__':
    main()
