"""Compiles one step for a TPU that is not here, for tpu_estimate.py, which starts it.

Reads a task from standard input, JSON, and writes the compiled program and what else the table
needs to a file. It runs in a process of its own, since contenders may be other versions of this
project, or need packages that do not go with it.
"""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from mae_jax.config.files import load_config
from mae_jax.experiment.inherit import inherit
from mae_jax.planning.compile import compile_step, topology_devices
from mae_jax.planning.plan import Run, find_data, make_run
from mae_jax.runtime.chips import named_chip
from mae_jax.runtime.library_noise import discarded_stderr
from mae_jax.training.sharding import make_mesh

IMAGENET_EXAMPLES = 1_281_167


def load_function(place: str) -> tuple[Callable, dict[str, str]]:
    """Returns the function at 'file.py:name', and the file's `SCOPES`, {} where it has none."""
    path, _, name = place.partition(':')
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name), getattr(module, 'SCOPES', {})


def compile_peer(make: Callable, run: Run) -> jax.stages.Compiled:
    """Compiles another implementation's step: the state on every device, the batch split."""
    step, state, batch = make(run.config)

    def place(tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(run.mesh, spec)
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    state = place(state, PartitionSpec())
    batch = place(batch, PartitionSpec(run.mesh.axis_names))
    with discarded_stderr():
        return jax.jit(step, donate_argnums=0).lower(state, batch).compile()


def main() -> None:
    task = json.load(sys.stdin)
    devices = topology_devices(named_chip(task['chip']), task['topology'])
    batch = f'batch_size={task["images"] * len(devices)}'
    config = inherit(load_config(task['model'], [batch, *task['overrides']]), '')
    data = find_data(config, IMAGENET_EXAMPLES)
    run = make_run(config, make_mesh(config.mesh.fsdp, devices), data)
    scopes = {}
    if task['peer']:
        make, scopes = load_function(task['peer'])
        compiled = compile_peer(make, run)
    else:
        compiled = compile_step(run)
    result = {
        'text': compiled.as_text(),
        'scopes': scopes,
        'flops': run.task.flops_per_image() * task['images'],
        'temporary': compiled.memory_analysis().temp_size_in_bytes,
    }
    Path(task['out']).write_text(json.dumps(result))


if __name__ == '__main__':
    main()
