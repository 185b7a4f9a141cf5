"""main.py, noting at every step which images this process was given.

Each image is of one grey, its own, which no crop or flip changes. A line a step goes to the file
RECORD names: {"step": 1, "rows": {"0": 17, ...}}, row of the global batch -> grey.

HANG_AT=n: step n never ends. SLICES gives the devices a `slice_index`, as those of GPUs on several
hosts have: each `process` is a slice, or every `two_processes`, or devices `alternate`.
HANG_AT=n: step n never ends. CLOCKS_APART=1: see clocks_apart.py.
"""

import json
import os
import sys
import time

import jax
import numpy as np

import helpers.clocks_apart  # noqa: F401, before the package reads a clock
from mae_jax.__main__ import main
from mae_jax.experiment import train

SLICES = {
    'process': lambda device: device.process_index,
    'two_processes': lambda device: device.process_index // 2,
    'alternate': lambda device: device.id % 2,
}
if 'SLICES' in os.environ:
    jax.Device.slice_index = property(SLICES[os.environ['SLICES']])


def recorded(step):
    def stepping(state, batch):
        number = int(state.step) + 1
        if str(number) == os.environ.get('HANG_AT'):
            time.sleep(3600)
        rows = {}
        for shard in batch['image'].addressable_shards:
            first = shard.index[0].start or 0
            for row, image in enumerate(np.asarray(shard.data), first):
                (grey,) = np.unique(image)
                rows[row] = int(grey)
        with open(os.environ['RECORD'], 'a') as file:
            file.write(json.dumps({'step': number, 'rows': rows}) + '\n')
        return step(state, batch)

    return stepping


jit_step = train.jit_step
if 'RECORD' in os.environ:
    train.jit_step = lambda *arguments: recorded(jit_step(*arguments))

if __name__ == '__main__':
    main(['train', *sys.argv[1:]], 'main.py')
