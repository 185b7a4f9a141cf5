"""The launchers: what they would run, what they do about lost processes, files others parse.

Behaviour is that of the real scripts; `python`, `srun` and `gcloud` are small stand-ins on the PATH
that answer and end as a test says.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from helpers.commands import TINY

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
SCRIPTS = ('local.sh', 'slurm.sbatch', 'tpu_pod.sh')


def start(script: str, *arguments: str, **environment: str) -> subprocess.Popen:
    ours = (
        'JAX_',
        'SLURM_',
        'CUDA_',
        'DRY_RUN',
        'PORT',
        'RESTARTS',
        'GRACE',
        'PYTHON',
        'XDG_',
        'TMPDIR',
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    return subprocess.Popen(
        ['bash', LAUNCH / script, *arguments],
        env=clean | {'JAX_PLATFORMS': 'cpu'} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # bash never heeds what it was started to ignore, as a test in the background is.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    process = start(script, *arguments, **environment)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def stand_in(path: Path, program: str) -> str:
    """An executable that does what a few lines of bash say."""
    path.write_text(f'#!/usr/bin/env bash\ncd {path.parent}\n{program}')
    path.chmod(0o755)
    return str(path)


# ---- every script


@pytest.mark.parametrize('script', SCRIPTS)
def test_shellcheck_finds_nothing(script):
    shellcheck = shutil.which('shellcheck') or shutil.which(
        'shellcheck', path=Path(sys.executable).parent
    )
    if shellcheck is None:
        pytest.skip("no shellcheck: pip install -e '.[test]' brings it")
    done = subprocess.run(
        [shellcheck, '--shell=bash', LAUNCH / script], capture_output=True, text=True
    )
    assert done.stdout == '' and done.returncode == 0


def test_a_dry_run_of_local_prints_one_command_a_process():
    done = run('local.sh', '2', '--config=a.py', '--workdir=my runs', DRY_RUN='1', PORT='12345')
    common = (
        'JAX_COORDINATOR_ADDRESS=127.0.0.1:12345 JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:12345 '
        'JAX_NUM_PROCESSES=2 JAX_PROCESS_ID={} '
        'python {}/main.py --config=a.py --workdir=my\\ runs\n'
    )
    assert done.stdout == common.format(0, ROOT) + common.format(1, ROOT)
    assert done.returncode == 0


def test_gpus_are_shared_out_evenly():
    gpus = dict(DRY_RUN='1', JAX_PLATFORMS='cuda', CUDA_VISIBLE_DEVICES='4,5,6,7')
    done = run('local.sh', '2', **gpus)
    assert re.findall('JAX_LOCAL_DEVICE_IDS=([0-9,]+)', done.stdout) == ['0,1', '2,3']
    done = run('local.sh', '3', **gpus)
    assert done.returncode == 1 and '4 GPUs cannot be shared evenly by 3 processes' in done.stderr


def test_a_dry_run_of_slurm_prints_the_step_and_the_requeueing():
    done = run(
        'slurm.sbatch', '--config=a.py', '--workdir=my runs',
        DRY_RUN='1', SLURM_JOB_ID='7', SLURM_CPUS_PER_TASK='4',
    )  # fmt: skip
    step, requeue = done.stdout.splitlines()
    task = 'trap : TERM; "$@"; s=$?; if [[ $s == [13] ]]; then touch "$0"; fi; exit "$s"'
    assert shlex.split(step) == [
        *('srun', '--cpus-per-task=4', '--kill-on-bad-exit=0', '--wait=600'),
        *('bash', '-c', task, f'{Path.cwd()}/.final-7-0'),
        *('python', 'main.py', '--config=a.py', '--workdir=my runs'),
    ]
    assert requeue == 'scontrol requeue 7 # where that ended with 75, 76, or 128 and above'


POD = dict(TPU='mae', ZONE='us-west4-a', TYPE='v5litepod-64', VERSION='v2-alpha-tpuv5-lite')
REQUEST = 'gcloud compute tpus queued-resources'
VM = 'gcloud compute tpus tpu-vm'
CREATE = (
    f'{REQUEST} create mae --node-id=mae --accelerator-type=v5litepod-64 '
    '--runtime-version=v2-alpha-tpuv5-lite --spot --zone=us-west4-a\n'
    f'{REQUEST} describe mae --format=value\\(state.state\\) --zone=us-west4-a\n'
)
INSTALL = (
    f'git -C {ROOT} archive --format=tar.gz --output=/tmp/mae_jax.tar.gz HEAD\n'
    f'{VM} scp /tmp/mae_jax.tar.gz mae:mae_jax.tar.gz --worker=all --zone=us-west4-a\n'
    f'{VM} ssh mae --worker=all --command='
    'rm -rf mae_jax && mkdir mae_jax && tar -xzf mae_jax.tar.gz -C mae_jax && '
    'PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv && '
    '.local/bin/uv venv --quiet --clear --python 3.12 mae_venv && '
    '.local/bin/uv pip install --quiet --python mae_venv -c mae_jax/constraints.txt '
    "-e './mae_jax[tpu]' && "
    '.local/bin/uv pip install --quiet --python mae_venv gcsfs && true --zone=us-west4-a\n'
)
RUN = (
    f'{VM} ssh mae --worker=all --command='
    '[ "$(systemctl show mae --property=SubState --value)" = exited ] && sudo systemctl stop mae; '
    'sudo systemctl reset-failed mae 2>/dev/null; '
    'sudo systemd-run --unit=mae --uid="$(id -u)" --gid="$(id -g)" --setenv=HOME="$HOME" '
    '--working-directory="$HOME/mae_jax" --property=StandardOutput=append:"$HOME/mae.log" '
    '--property=StandardError=append:"$HOME/mae.log" --property=KillMode=mixed '
    '--property=TimeoutStopSec=300 --property=Restart=on-failure '
    '--property=RestartPreventExitStatus="1 3" --property=RestartSec=15 '
    '--property=StartLimitIntervalSec=3600 --property=StartLimitBurst=10 '
    '--property=RemainAfterExit=yes "$HOME/mae_venv/bin/python" main.py '
    "--config=a.py --workdir=gs://b/c --config.init_from=it\\'s --zone=us-west4-a\n"
)
DELETE = f'{REQUEST} delete mae --force --quiet --zone=us-west4-a\n'
STATE = CREATE.splitlines(keepends=True)[1]
FLAGS = ('--config=a.py', '--workdir=gs://b/c', "--config.init_from=it's")


@pytest.mark.parametrize(
    'arguments, printed',
    [
        (('create',), CREATE),
        (('install',), INSTALL),
        (('run', *FLAGS), RUN),
        (
            ('tail',),
            f'{VM} ssh mae --worker=0 --command=tail -n 100 -F mae.log --zone=us-west4-a\n',
        ),
        (
            ('stop',),
            f'{VM} ssh mae --worker=all --command=sudo systemctl stop mae --zone=us-west4-a\n',
        ),
        (
            ('status',),
            f'{REQUEST} describe mae --zone=us-west4-a\n{VM} ssh mae --worker=all '
            '--command=systemctl status mae --no-pager --lines=3 --zone=us-west4-a\n',
        ),
        (('delete',), DELETE),
        (('keep', *FLAGS), (CREATE + INSTALL + RUN + STATE + DELETE + CREATE + INSTALL + RUN)),
    ],
)
def test_a_dry_run_of_a_pod_prints_every_command(arguments, printed):
    done = run('tpu_pod.sh', *arguments, DRY_RUN='1', SPOT='1', **POD)
    assert as_words(done.stdout) == printed.replace('\\(', '(').replace('\\)', ')')
    assert done.returncode == 0, done.stderr


def as_words(commands: str) -> str:
    """Lines of commands as a shell reads them: each its words, with one space between them."""
    lines = ''.join(f'set -- {line}; echo "$*"\n' for line in commands.splitlines())
    return subprocess.run(['bash'], input=lines, capture_output=True, text=True).stdout


def test_a_pod_needs_its_name_and_a_work_directory_for_all():
    assert 'set ZONE' in run('tpu_pod.sh', 'create', TPU='mae').stderr
    assert 'give --workdir=gs://' in run('tpu_pod.sh', 'run', '--config=a.py', **POD).stderr


# ---- local.sh: processes


def test_output_of_process_0_is_plain_and_that_of_others_begins_with_their_number(tmp_path):
    python = stand_in(
        tmp_path / 'python', 'echo "out $JAX_PROCESS_ID $2"; echo "err $JAX_PROCESS_ID" >&2'
    )
    done = run('local.sh', '3', '--a=b c', PYTHON=python)
    assert done.stdout == 'out 0 --a=b c\n'
    assert sorted(done.stderr.splitlines()) == [
        '[1] err 1', '[1] out 1 --a=b c', '[2] err 2', '[2] out 2 --a=b c', 'err 0',
    ]  # fmt: skip
    assert done.returncode == 0


def test_all_start_again_on_a_new_port_where_one_was_lost(tmp_path):
    python = stand_in(
        tmp_path / 'python',
        'echo "$JAX_COORDINATOR_ADDRESS" >> addresses.$JAX_PROCESS_ID\n'
        '[[ $(wc -l < addresses.$JAX_PROCESS_ID) == 3 ]] && exit 0\n'
        'case $JAX_PROCESS_ID in 0) exit 76 ;; 1) kill -KILL $$ ;; esac\n',
    )
    done = run('local.sh', '2', PYTHON=python)
    assert done.returncode == 0
    assert 'restart 2 of 3' in done.stderr and 'restart 3' not in done.stderr
    addresses = [(tmp_path / f'addresses.{i}').read_text().split() for i in range(2)]
    assert addresses[0] == addresses[1] and len(set(addresses[0])) == 3


def test_restarts_are_bounded(tmp_path):
    done = run('local.sh', '2', RESTARTS='1', PYTHON=stand_in(tmp_path / 'python', 'kill -KILL $$'))
    assert done.returncode == 137
    assert 'restart 1 of 1' in done.stderr and 'after 1 restarts: given up' in done.stderr


@pytest.mark.parametrize('status', [1, 3, 75, 2])
def test_a_status_that_calls_for_no_restart_is_passed_on(tmp_path, status):
    """Though the other process says later that it lost its peer."""
    python = stand_in(
        tmp_path / 'python', f'((JAX_PROCESS_ID)) && exit {status}; sleep .3; exit 76'
    )
    done = run('local.sh', '2', PYTHON=python)
    assert done.returncode == status and 'restart' not in done.stderr


def test_a_mistake_counts_more_than_that_its_process_was_lost_to_others(tmp_path):
    python = stand_in(tmp_path / 'python', '((JAX_PROCESS_ID)) && exit 76; sleep .3; exit 3')
    assert run('local.sh', '2', PYTHON=python).returncode == 3


@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_every_process_is_told_once_and_no_restart_follows(tmp_path, sent):
    python = stand_in(
        tmp_path / 'python',
        'trap "echo told >> told.$JAX_PROCESS_ID" TERM\n'
        'touch ready.$JAX_PROCESS_ID\n'
        'until [[ -e told.$JAX_PROCESS_ID ]]; do sleep .1; done\n'
        'sleep .2; touch saved.$JAX_PROCESS_ID; exit $((76 + 67 * JAX_PROCESS_ID))\n',
    )
    process = start('local.sh', '2', PYTHON=python)
    wait_for(tmp_path / 'ready.0', tmp_path / 'ready.1')
    process.send_signal(sent)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75 and 'told to stop' in err and 'restart' not in err
    for i in range(2):
        assert (tmp_path / f'saved.{i}').exists()
        assert (tmp_path / f'told.{i}').read_text() == 'told\n'


def test_no_process_survives(tmp_path):
    """Neither one that waits for a lost one for ever, nor what a process started itself."""
    python = stand_in(
        tmp_path / 'python',
        'sleep 1000 & echo $! >> pids; echo $$ >> pids\n'
        '((JAX_PROCESS_ID)) || kill -KILL $$\n'
        'trap "" TERM; while :; do sleep 1; done\n',
    )
    done = run('local.sh', '2', PYTHON=python, RESTARTS='0', GRACE='0')
    pids = (tmp_path / 'pids').read_text().split()
    assert done.returncode == 137 and len(pids) == 4
    assert [pid for pid in pids if alive(pid)] == []


def alive(pid: str) -> bool:
    try:
        return Path('/proc', pid, 'stat').read_text().split()[2] != 'Z'
    except FileNotFoundError:
        return False


def wait_for(*paths: Path) -> None:
    deadline = time.monotonic() + 30
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f'no {paths}'
        time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_of_this_machine_train_to_the_end(tmp_path):
    done = run(
        'local.sh', '2', *(flag.replace('configs/', f'{ROOT}/configs/') for flag in TINY),
        f'--workdir={tmp_path}/run', PYTHON=sys.executable, PYTHONPATH=str(ROOT), XLA_FLAGS='',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'run' / 'checkpoints' / '8').is_dir()
    assert 'restart' not in done.stderr


# ---- slurm.sbatch


@pytest.mark.parametrize(
    'status, requeued', [(0, False), (1, False), (3, False), (75, True), (76, True), (137, True)]
)
def test_a_slurm_job_is_requeued_where_it_can_go_on(tmp_path, status, requeued):
    stand_in(tmp_path / 'srun', f'exit {status}')
    stand_in(tmp_path / 'scontrol', 'echo "scontrol $*"')
    path = f'{tmp_path}:{os.environ["PATH"]}'
    done = run('slurm.sbatch', PATH=path, SLURM_JOB_ID='7')
    assert done.stdout == ('scontrol requeue 7\n' if requeued else '')
    assert requeued or done.returncode == status


@pytest.mark.parametrize('status, requeued', [(1, False), (3, False), (76, True)])
def test_what_one_process_of_several_ends_with_decides(tmp_path, status, requeued):
    """srun runs the task as Slurm would, and tells the highest status: that of those it ended."""
    stand_in(tmp_path / 'srun', 'while [[ $1 == -* ]]; do shift; done; "$@" || true; exit 134')
    stand_in(tmp_path / 'scontrol', 'echo "scontrol $*"')
    stand_in(tmp_path / 'python', f'exit {status}')
    path = f'{tmp_path}:{os.environ["PATH"]}'
    done = run('slurm.sbatch', PATH=path, SLURM_JOB_ID=f'{os.getpid()}')
    assert done.stdout == (f'scontrol requeue {os.getpid()}\n' if requeued else '')
    assert not list(Path.cwd().glob(f'.final-{os.getpid()}-*'))


def test_requeueing_is_bounded_where_processes_are_lost_and_not_at_the_time_limit(tmp_path):
    stand_in(tmp_path / 'scontrol', 'echo requeued')
    path = f'{tmp_path}:{os.environ["PATH"]}'
    told = {}
    for status in (76, 75):
        stand_in(tmp_path / 'srun', f'exit {status}')
        told[status] = run('slurm.sbatch', PATH=path, RESTARTS='5', SLURM_RESTART_COUNT='5')
    assert told[76].returncode == 76 and 'given up' in told[76].stderr
    assert told[75].stdout == 'requeued\n'


def test_a_job_that_slurm_itself_ends_is_saved_and_not_requeued(tmp_path):
    """`scancel` and preemption tell the batch script too, a near time limit the step alone."""
    stand_in(tmp_path / 'srun', 'touch ready; sleep .5; touch saved; exit 75')
    stand_in(tmp_path / 'scontrol', 'touch requeued')
    process = start('slurm.sbatch', PATH=f'{tmp_path}:{os.environ["PATH"]}')
    wait_for(tmp_path / 'ready')
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 75
    assert (tmp_path / 'saved').exists() and not (tmp_path / 'requeued').exists()


SBATCH_OPTIONS = {  # sbatch(1)
    'job-name': r'\S+',
    'nodes': r'\d+(-\d+)?',
    'ntasks-per-node': r'\d+',
    'gpus-per-node': r'([\w.-]+:)?\d+',
    'cpus-per-task': r'\d+',
    'mem': r'\d+[KMGT]?',
    'time': r'(\d+-)?\d+(:\d\d){0,2}',
    'signal': r'([RB]:)*[A-Z0-9]+(@\d{1,5})?',
    'requeue': None,
    'open-mode': r'append|truncate',
    'output': r'(\S|%[%AajNnstux])+',
}


def test_the_directives_are_ones_that_sbatch_knows_with_values_it_takes():
    lines = (LAUNCH / 'slurm.sbatch').read_text().splitlines()
    commands = [i for i, line in enumerate(lines) if line and not line.startswith('#')]
    given = {}
    for i, line in enumerate(lines):
        if line.startswith('#SBATCH'):
            assert i < commands[0], f'sbatch reads no directive after the first command: {line}'
            option, _, value = line.removeprefix('#SBATCH --').partition('=')
            pattern = SBATCH_OPTIONS[option]
            assert value == '' if pattern is None else re.fullmatch(pattern, value), line
            assert option not in given
            given[option] = value
    assert given['ntasks-per-node'] == given['gpus-per-node']  # one process a GPU
    assert 'requeue' in given
    assert given['signal'].startswith('TERM@')  # no B: the processes are told, not the script


# ---- tpu_pod.sh


def test_keep_makes_a_preempted_pod_anew_and_returns_when_the_run_has_ended(tmp_path):
    for name, answers in {
        'pod': 'none WAITING_FOR_RESOURCES ACTIVE ACTIVE ACTIVE none ACTIVE ACTIVE ACTIVE',
        'node': 'READY PREEMPTED READY READY',
        'run': 'running,0 auto-restart,76 failed,3',
    }.items():
        (tmp_path / name).write_text(answers.replace(' ', '\n') + '\n')
    stand_in(
        tmp_path / 'gcloud',
        'pop() { head -n 1 $1; sed -i 1d $1; }\n'
        'case $* in\n'
        '  *"queued-resources describe"*) pop pod ;;\n'
        '  *"tpu-vm describe"*) pop node ;;\n'
        '  *"--property=SubState --property=ExecMainStatus"*)\n'
        '    IFS=, read -r state status < <(pop run)\n'
        '    printf "ExecMainStatus=%s\\nSubState=%s\\n" "$status" "$state" ;;\n'
        '  *) echo "$3 $4" >> made ;;\n'
        'esac\n',
    )
    stand_in(tmp_path / 'git', 'true')
    stand_in(tmp_path / 'sleep', 'true')
    done = run('tpu_pod.sh', 'keep', *FLAGS, PATH=f'{tmp_path}:{os.environ["PATH"]}', **POD)
    made = ['queued-resources create', 'tpu-vm scp', 'tpu-vm ssh', 'tpu-vm ssh']
    assert (tmp_path / 'made').read_text().splitlines() == [
        *made, 'queued-resources delete', *made,
    ]  # fmt: skip
    assert done.returncode == 3 and 'ended with status 3' in done.stderr
    assert 'mae is WAITING_FOR_RESOURCES' in done.stderr


# ---- kubernetes.yaml


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that is given twice, as Kubernetes does."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f'a key twice: {keys}'
        return super().construct_mapping(node, deep)


JOBSET = {  # jobset.x-k8s.io/v1alpha2; a list holds one alternative, a set the values that may be
    'apiVersion': {'jobset.x-k8s.io/v1alpha2'},
    'kind': {'JobSet'},
    'metadata': {'name': str, 'labels': dict, 'annotations': dict, 'namespace': str},
    'spec': {
        'network': {'enableDNSHostnames': bool, 'subdomain': str, 'publishNotReadyAddresses': bool},
        'failurePolicy': {
            'maxRestarts': int,
            'restartStrategy': {'Recreate', 'BlockingRecreate', 'InPlaceRestart'},
            'rules': [
                {
                    'name': re.compile('[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?'),
                    'action': {'FailJobSet', 'RestartJobSet', 'RestartJobSetAndIgnoreMaxRestarts'},
                    'onJobFailureReasons': [
                        {
                            'BackoffLimitExceeded',
                            'DeadlineExceeded',
                            'FailedIndexes',
                            'MaxFailedIndexesExceeded',
                            'PodFailurePolicy',
                        }
                    ],
                    'targetReplicatedJobs': [str],
                }
            ],
        },
        'successPolicy': {'operator': {'All', 'Any'}, 'targetReplicatedJobs': [str]},
        'suspend': bool,
        'coordinator': {'replicatedJob': str, 'jobIndex': int, 'podIndex': int},
        'managedBy': str,
        'ttlSecondsAfterFinished': int,
        'replicatedJobs': [
            {
                'name': re.compile('[a-z]([a-z0-9-]*[a-z0-9])?'),
                'groupName': str,
                'replicas': int,
                'template': {'metadata': dict, 'spec': dict},
                'dependsOn': list,
            }
        ],
    },
}


def check(value, schema, at='.') -> None:
    if isinstance(schema, dict):
        assert isinstance(value, dict), at
        assert set(value) <= set(schema), f'{at}: unknown {set(value) - set(schema)}'
        for key in value:
            check(value[key], schema[key], f'{at}{key}.')
    elif isinstance(schema, list):
        assert isinstance(value, list), at
        for i, item in enumerate(value):
            check(item, schema[0], f'{at}{i}.')
    elif isinstance(schema, set):
        assert value in schema, f'{at}: {value}'
    elif isinstance(schema, re.Pattern):
        assert schema.fullmatch(value), f'{at}: {value}'
    else:
        assert type(value) is schema, f'{at}: {value!r} is no {schema.__name__}'


def load_jobset(kind: str) -> dict:
    """The file itself for GPUs; for TPUs, what the command in its header makes of it."""
    path = LAUNCH / 'kubernetes.yaml'
    if kind == 'gpu':
        text = path.read_text()
    else:
        command = re.search('^#   (sed .*) launch/kubernetes.yaml [|]', path.read_text(), re.M)[1]
        done = subprocess.run(['bash', '-c', f'{command} {path}'], capture_output=True, text=True)
        text = done.stdout
    return yaml.load(text, StrictLoader)


@pytest.mark.parametrize('kind', ['gpu', 'tpu'])
def test_the_jobset_has_only_fields_of_its_api(kind):
    check(load_jobset(kind), JOBSET)


@pytest.mark.parametrize('kind', ['gpu', 'tpu'])
def test_the_job_in_it_is_valid_by_kubernetes_own_schema(kind):
    validate = pytest.importorskip(
        'kubernetes_validate', reason="pip install -e '.[test]' brings it"
    )
    template = load_jobset(kind)['spec']['replicatedJobs'][0]['template']
    job = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'mae'}, **template}
    validate.validate(job, validate.latest_version(), strict=True)


@pytest.mark.parametrize('kind', ['gpu', 'tpu'])
def test_exit_statuses_and_pods_in_kubernetes_are_as_main_says(kind):
    jobset = load_jobset(kind)
    replicated = jobset['spec']['replicatedJobs'][0]
    job = replicated['template']['spec']
    pod = job['template']['spec']
    container = pod['containers'][0]
    (rule,) = job['podFailurePolicy']['rules']
    assert rule['action'] == 'FailJob'
    assert rule['onExitCodes'] == {
        'containerName': container['name'],
        'operator': 'In',
        'values': [1, 3],
    }
    assert jobset['spec']['failurePolicy']['rules'][0]['onJobFailureReasons'] == [
        'PodFailurePolicy'
    ]
    assert job['completionMode'] == 'Indexed' and job['completions'] == job['parallelism']
    assert pod['restartPolicy'] == 'Never'  # a podFailurePolicy asks for it
    assert pod['terminationGracePeriodSeconds'] >= 120
    assert pod['securityContext']['runAsNonRoot'] and 'hostNetwork' not in pod
    assert container['securityContext']['allowPrivilegeEscalation'] is False
    assert 'ports' not in container
    mounts = {mount['name'] for mount in container['volumeMounts']}
    assert mounts == {volume['name'] for volume in pod['volumes']}
    environment = {entry['name']: entry for entry in container['env']}
    if kind == 'gpu':
        host = f'{jobset["metadata"]["name"]}-{replicated["name"]}-0-0'
        address = environment['JAX_COORDINATOR_ADDRESS']['value']
        assert re.fullmatch(rf'{host}\.{jobset["spec"]["network"]["subdomain"]}:\d+', address)
        assert environment['JAX_NUM_PROCESSES']['value'] == str(job['completions'])
        assert 'JAX_PROCESS_ID' not in environment  # the Job numbers its pods
    else:
        assert not [name for name in environment if name.startswith('JAX_')]
        assert 'google.com/tpu' in container['resources']['limits']
