"""Slurm's and Kubernetes' paths to a finished run, walked by real processes in two slices.

What the cluster does is done by hand: its variables, and who starts what. The devices are CPUs that
give the number of their host as `slice_index`, as GPUs do.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.commands import ROOT, TINY
from helpers.environment import xla_flags
from helpers.faulty_runs import ended, free_port, log_of, wait_for
from helpers.launchers import LAUNCH, run, stand_in

pytestmark = pytest.mark.slow
FLAGS = (
    *(flag.replace('configs/', f'{ROOT}/configs/') for flag in TINY),
    '--config.num_steps=4',
    '--config.eval_every_steps=0',
    '--config.image_every_steps=0',
    '--config.checkpoint_every_steps=4',
)
TIMEOUT = 900
MAIN = ROOT / 'tests/helpers/recording_main.py'
PATHS = os.pathsep.join((str(ROOT), str(ROOT / 'tests')))
SLOW = 'spans slices of 2 devices: steps will be slow'


def check(printed: str, workdir: Path, fsdp: int) -> None:
    assert f"mesh {{'data': {4 // fsdp}, 'fsdp': {fsdp}}}" in printed
    assert (SLOW in printed) == (fsdp == 4)
    assert 'finished at step 4 of 4' in printed
    assert (workdir / 'checkpoints/4').is_dir()


@pytest.mark.parametrize('fsdp', [2, 4])
def test_a_slurm_step_of_two_nodes_with_two_gpus_each(tmp_path, fsdp):
    """`srun` starts a process a GPU, and JAX reads from its variables who they are."""
    stand_in(
        tmp_path / 'srun',
        'while [[ $1 == -* ]]; do shift; done\n'
        'export SLURM_JOB_ID SLURM_NTASKS=4 SLURM_STEP_NODELIST=localhost,other\n'
        'for i in {0..3}; do\n'
        '  SLURM_PROCID=$i SLURM_LOCALID=$((i % 2)) SLURM_NODEID=$((i / 2)) "$@" >out.$i 2>&1 &\n'
        'done\n'
        'status=0; for task in $(jobs -p); do wait $task || status=$?; done; exit $status\n',
    )
    stand_in(tmp_path / 'scontrol', 'echo requeued')
    python = stand_in(tmp_path / 'python', f'shift; exec {sys.executable} {MAIN} "$@"')
    workdir = tmp_path / 'run'
    done = run(
        'slurm.sbatch', *FLAGS, f'--config.mesh.fsdp={fsdp}', f'--workdir={workdir}',
        PATH=f'{tmp_path}:{os.environ["PATH"]}', PYTHON=python, PYTHONPATH=PATHS,
        SLURM_JOB_ID=str(os.getpid()), SLICES='two_processes', XLA_FLAGS=xla_flags(1),
        JAX_COMPILATION_CACHE_DIR=os.environ['JAX_COMPILATION_CACHE_DIR'], timeout=TIMEOUT,
    )  # fmt: skip
    printed = [(tmp_path / f'out.{i}').read_text() for i in range(4)]
    assert (done.returncode, done.stdout) == (0, ''), printed
    assert f'4 processes: started by Slurm, job {os.getpid()}' in printed[0]
    check(printed[0], workdir, fsdp)
    assert all('finished' not in other for other in printed[1:])


@pytest.mark.parametrize('fsdp', [2, 4])
def test_two_pods_of_a_kubernetes_job_with_two_gpus_each(tmp_path, fsdp):
    """The kubelet gives a pod what the JobSet lists, and its number in the Indexed Job."""
    jobset = yaml.safe_load((LAUNCH / 'kubernetes.yaml').read_text())
    job = jobset['spec']['replicatedJobs'][0]['template']['spec']
    (container,) = job['template']['spec']['containers']
    assert container['command'][:2] == ['mae-jax', 'train']
    variables = {each['name']: each['value'] for each in container['env']}
    port = free_port()
    variables['JAX_COORDINATOR_ADDRESS'] = f'127.0.0.1:{port}'  # the name is that of a pod
    clean = {k: v for k, v in os.environ.items() if not k.startswith(('JAX_COORD', 'SLURM_'))}
    workdir, log, pods = tmp_path / 'run', tmp_path / 'log', []
    command = (sys.executable, MAIN, *FLAGS, f'--config.mesh.fsdp={fsdp}', f'--workdir={workdir}')
    for index in range(job['completions']):
        cluster = {'JOB_COMPLETION_INDEX': str(index), 'KUBERNETES_SERVICE_HOST': '10.96.0.1'}
        devices = {'SLICES': 'process', 'XLA_FLAGS': xla_flags(2), 'PYTHONPATH': PATHS}
        with log_of(log, index, 2).open('w') as file:
            pod = subprocess.Popen(
                command,
                env=clean | variables | cluster | devices | {'JAX_PLATFORMS': 'cpu'},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        pods.append(pod)
    with ended(pods):
        statuses = wait_for(pods, TIMEOUT)
    printed = [log_of(log, index, 2).read_text() for index in range(2)]
    assert statuses == [0, 0], printed
    assert f'2 processes: Kubernetes names 127.0.0.1:{port} as coordinator' in printed[0]
    check(printed[0], workdir, fsdp)
