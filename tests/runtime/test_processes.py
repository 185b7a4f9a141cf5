import pytest

from mae_jax.errors import UserError
from mae_jax.runtime.processes import find_processes, on_first

COORDINATOR = {
    'JAX_COORDINATOR_ADDRESS': '10.0.0.1:1234',
    'JAX_NUM_PROCESSES': '4',
    'JAX_PROCESS_ID': '3',
}
SLURM = {
    'SLURM_NTASKS': '8',
    'SLURM_JOB_ID': '77',
    'SLURM_STEP_NODELIST': 'node[1-8]',
    'SLURM_PROCID': '2',
    'SLURM_LOCALID': '0',
}
EXPLICIT = dict(coordinator_address='10.0.0.1:1234', num_processes=4, process_id=3)
EXPLICIT |= dict(cluster_detection_method='deactivate')


@pytest.mark.parametrize(
    ('environment', 'summary', 'arguments'),
    [
        ({}, '', None),
        (COORDINATOR, 'the environment names 10.0.0.1:1234 as coordinator', EXPLICIT),
        (
            COORDINATOR | {'KUBERNETES_SERVICE_HOST': '10.1.0.1'},
            'Kubernetes names 10.0.0.1:1234 as coordinator',
            EXPLICIT,
        ),
        (SLURM, 'started by Slurm, job 77', {}),
        (SLURM | {'SLURM_NTASKS': '1'}, '', None),
        ({'TPU_ML_PLATFORM': 'JAX'}, 'started by Cloud TPU', {}),
        (SLURM | COORDINATOR, 'the environment names 10.0.0.1:1234 as coordinator', EXPLICIT),
        ({'TPU_WORKER_HOSTNAMES': 'a,b'}, '', None),  # a TPU's host without its chips
        ({'TPU_ML_PLATFORM': 'JAX', 'JAX_PLATFORMS': 'cpu'}, '', None),
        ({'TPU_ML_PLATFORM': 'JAX', 'TPU_SKIP_MDS_QUERY': '1'}, '', None),  # chips of one machine
    ],
)
def test_how_processes_discover_each_other(environment, summary, arguments):
    assert find_processes(environment) == (summary, arguments)


def test_kubernetes_numbers_the_pods_of_an_indexed_job():
    environment = COORDINATOR | {'JOB_COMPLETION_INDEX': '2', 'KUBERNETES_SERVICE_HOST': 'x'}
    assert find_processes(environment)[1]['process_id'] == 3
    del environment['JAX_PROCESS_ID']
    assert find_processes(environment)[1]['process_id'] == 2


def test_a_slurm_job_whose_steps_were_not_started_by_srun_is_one_process_with_a_hint():
    environment = {k: v for k, v in SLURM.items() if k != 'SLURM_STEP_NODELIST'}
    summary, arguments = find_processes(environment)
    assert arguments is None and 'srun did not start' in summary


@pytest.mark.parametrize(
    'change',
    [
        {'JAX_NUM_PROCESSES': 'four'},
        {'JAX_NUM_PROCESSES': '0'},
        {'JAX_PROCESS_ID': '4'},
        {'JAX_PROCESS_ID': '-1'},
        {'JAX_PROCESS_ID': None},
        {'JAX_COORDINATOR_ADDRESS': '10.0.0.1'},
        {'JAX_COORDINATOR_ADDRESS': '10.0.0.1:http'},
        {'JAX_COORDINATOR_ADDRESS': ':99999'},
    ],
)
def test_a_coordinator_without_sound_numbers_is_refused(change):
    environment = {k: v for k, v in (COORDINATOR | change).items() if v is not None}
    with pytest.raises(UserError, match='JAX_NUM_PROCESSES'):
        find_processes(environment)


def test_one_process_does_what_the_first_does():
    assert on_first(lambda: 3) == 3
