"""tpu_pod.sh: every command that it would run, and `keep` when a pod is preempted.

`gcloud` is a small stand-in on the PATH that answers as a test needs.
"""

import os
import subprocess

import pytest
from helpers.commands import ROOT
from helpers.launchers import run, stand_in

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
    '.local/bin/uv venv --quiet --clear --python 3.13 mae_venv && '
    '.local/bin/uv pip install --quiet --python mae_venv -c mae_jax/constraints/newest.txt '
    "-e './mae_jax[tpu,gcs]' && true --zone=us-west4-a\n"
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
