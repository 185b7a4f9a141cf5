"""One device reads what eight devices wrote, and vice versa, in real processes."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers.commands import ROOT, TINY
from helpers.environment import xla_flags
from helpers.tiny_runs import flat

import mae_jax

READ = """
import sys
import jax, numpy as np
import mae_jax
from helpers.tiny_runs import flat
assert len(jax.devices()) == int(sys.argv[1]), jax.devices()
module, params = mae_jax.load(sys.argv[2])
np.savez(sys.argv[3], **flat(params))
"""
WIDE = ('--config.model.width=64', '--config.num_steps=4')
"""Wide enough for fsdp to split kernels."""


def python(devices, *arguments):
    path = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    environment = os.environ | {'XLA_FLAGS': xla_flags(devices), 'PYTHONPATH': path}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(('wrote', 'reads'), [(8, 1), (1, 8)])
def test_a_checkpoint_loads_and_continues_on_another_number_of_devices(tmp_path, wrote, reads):
    workdir = tmp_path / 'run'
    run = ('main.py', *TINY, *WIDE, f'--workdir={workdir}')
    python(wrote, *run, f'--config.mesh.fsdp={wrote}')
    if wrote == 8:  # the arrays on disk are sharded
        sharding = [p.read_text() for p in workdir.rglob('_sharding') if p.is_file()]
        assert sharding and all('fsdp' in text for text in sharding)
    python(reads, '-c', READ, reads, workdir, tmp_path / 'read.npz')
    expected = flat(mae_jax.load(workdir)[1])
    actual = np.load(tmp_path / 'read.npz')
    assert set(actual.files) == expected.keys() and len(jax.devices()) == 8
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)

    output = python(
        reads,
        'main.py',
        '--config=configs/finetune.py',
        '--config.num_steps=1',
        '--config.batch_size=16',
        '--config.dataset.augment=',
        '--config.eval_examples=16',
        f'--config.init_from={workdir}',
        f'--config.mesh.fsdp={reads}',
        f'--workdir={tmp_path / "fine_tuned"}',
    )
    assert f'starting from {workdir}, step 4; loaded: encoder' in output
