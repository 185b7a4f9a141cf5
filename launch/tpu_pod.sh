#!/usr/bin/env bash
# A run on a Cloud TPU pod, from your own machine by gcloud.
#
#   export TPU=mae ZONE=us-west4-a TYPE=v5litepod-64 VERSION=v2-alpha-tpuv5-lite SPOT=1
#   launch/tpu_pod.sh create     # requests the pod and waits until it is ready
#   launch/tpu_pod.sh install    # copies what git has committed to all workers and installs it
#   launch/tpu_pod.sh run --config=configs/vit_large.py --workdir=gs://bucket/vit_large
#   launch/tpu_pod.sh tail       # follows the log of worker 0
#   launch/tpu_pod.sh status     # of the pod, and of the run on every worker
#   launch/tpu_pod.sh stop       # the run saves and ends; the pod stays, and costs
#   launch/tpu_pod.sh delete     # the pod too
#   launch/tpu_pod.sh keep FLAGS # all of it: create, install, run; again whenever preempted
#
# The run is a systemd service on every worker: it outlives the ssh that started it, and where a
# process is lost (76, killed) or a maintenance notice made it save and end (75), systemd starts it
# again, RESTARTS times an hour at most; all workers do, and they resume. A finished run (0), a
# user's mistake (1) and a loss that is not finite (3) are not started again.
#
# Preemption: a spot pod is taken away as a whole. SIGTERM comes first, the run saves if there is
# time, else it goes on from the last checkpoint. `keep` looks every minute, and where the pod is
# gone deletes what is left of it, asks for a new one, installs and runs. It stays in the foreground
# (use tmux) and returns the status of a run that ended. It does not delete the pod then.
#
# Environment: TPU (its name), ZONE, TYPE (accelerator type) and VERSION (of its software) as above,
# SPOT=1 for a spot pod, PROJECT where gcloud has no default, RESTARTS=10, DRY_RUN=1 (prints the
# commands, runs nothing; `keep` as if the pod were preempted once).
set -euo pipefail

usage() { sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0"; }
warn() { echo "tpu_pod.sh: $*" >&2; }
fail() { warn "$*" && exit 1; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

execute() {
  if [[ -n ${DRY_RUN:-} ]]; then printf '%q ' "$@" | sed 's/ $/\n/'; else "$@"; fi
}

tpus() { # tpus GROUP VERB ...: one gcloud command, about our zone and project
  execute gcloud compute tpus "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}
}

on_workers() { # on_workers WHICH COMMAND
  tpus tpu-vm ssh "$TPU" --worker="$1" --command="$2"
}

# WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED (preempted), FAILED, ...; none: no such pod
pod_state() {
  tpus queued-resources describe "$TPU" --format='value(state.state)' 2>/dev/null || echo none
}

create() {
  tpus queued-resources create "$TPU" --node-id="$TPU" --accelerator-type="$TYPE" \
    --runtime-version="$VERSION" ${SPOT:+--spot}
  if [[ -n ${DRY_RUN:-} ]]; then pod_state && return; fi
  local state
  while state=$(pod_state) && [[ $state != ACTIVE ]]; do
    warn "$TPU is $state"
    case $state in FAILED | SUSPENDED | none) return 1 ;; esac
    sleep 30
  done
}

install() {
  local archive=mae_jax.tar.gz directory=${XDG_RUNTIME_DIR:-${TMPDIR:-/tmp}}
  local steps=(
    'rm -rf mae_jax && mkdir mae_jax'
    "tar -xzf $archive -C mae_jax"
    'PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv' # brings a new Python
    '.local/bin/uv venv --quiet --clear --python 3.13 mae_venv'
    ".local/bin/uv pip install --quiet --python mae_venv -c mae_jax/constraints/newest.txt -e './mae_jax[tpu,gcs]'"
  )
  execute git -C "$root" archive --format=tar.gz --output="$directory/$archive" HEAD || return
  tpus tpu-vm scp "$directory/$archive" "$TPU:$archive" --worker=all || return
  on_workers all "$(printf '%s && ' "${steps[@]}")true"
}

check_workdir() {
  [[ " $*" == *' --workdir='* ]] || fail 'give --workdir=gs://...: all workers share it.'
}

# shellcheck disable=SC2016 # $HOME and what is in $() are those of the worker
start() {
  local words=(
    'sudo systemd-run --unit=mae --uid="$(id -u)" --gid="$(id -g)" --setenv=HOME="$HOME"'
    '--working-directory="$HOME/mae_jax"'
    '--property=StandardOutput=append:"$HOME/mae.log" --property=StandardError=append:"$HOME/mae.log"'
    '--property=KillMode=mixed --property=TimeoutStopSec=300' # SIGTERM to main.py, time to save
    '--property=Restart=on-failure --property=RestartPreventExitStatus="1 3" --property=RestartSec=15'
    "--property=StartLimitIntervalSec=3600 --property=StartLimitBurst=${RESTARTS:-10}"
    '--property=RemainAfterExit=yes' # distinguishes a finished run from none
    '"$HOME/mae_venv/bin/python" main.py'
  )
  local forget='[ "$(systemctl show mae --property=SubState --value)" = exited ] && sudo systemctl stop mae;'
  forget+=' sudo systemctl reset-failed mae 2>/dev/null;'
  on_workers all "$forget ${words[*]}$(printf ' %q' "$@")"
}

delete() { tpus queued-resources delete "$TPU" --force --quiet; }

# State of the run on worker 0 in systemd (running, auto-restart, exited, failed; dead:
# not started), and the status it ended with.
run_state() {
  on_workers 0 'systemctl show mae --property=SubState --property=ExecMainStatus' 2>/dev/null | sort |
    sed 's/.*=//' | tr '\n' ' '
}

look() { # look FLAGS...: does what is to be done now; true where the run ended
  local status substate
  case $(pod_state) in
    none) create && install && start "$@" ;;
    SUSPENDING | SUSPENDED | FAILED) delete ;;
    ACTIVE)
      case $(tpus tpu-vm describe "$TPU" --format='value(state)' 2>/dev/null) in
        PREEMPTED | TERMINATED) delete ;;
        READY)
          read -r status substate < <(run_state) || true
          case ${substate:-unknown} in # unknown: ssh failed, for now
            dead) install && start "$@" ;;
            exited | failed) ended=$status ;;
          esac
          ;;
      esac
      ;;
  esac
}

keep() {
  if [[ -n ${DRY_RUN:-} ]]; then
    create && install && start "$@"
    pod_state && delete
    create && install && start "$@"
    return
  fi
  ended=
  while look "$@" || warn 'that failed: once more in a minute'; do
    if [[ $ended ]]; then break; fi
    sleep 60
  done
  warn "the run ended with status $ended; $TPU still exists, and costs"
  return "$ended"
}

command=${1:-help}
shift || true
case $command in
  create | install | run | tail | status | stop | delete | keep)
    for name in TPU ZONE TYPE VERSION; do
      [[ ${!name:-} ]] || fail "set $name: see launch/tpu_pod.sh help"
    done
    ;;&
  create) create ;;
  install) install ;;
  run) check_workdir "$@" && start "$@" ;;
  tail) on_workers 0 'tail -n 100 -F mae.log' ;;
  status)
    tpus queued-resources describe "$TPU"
    on_workers all 'systemctl status mae --no-pager --lines=3'
    ;;
  stop) on_workers all 'sudo systemctl stop mae' ;;
  delete) delete ;;
  keep) check_workdir "$@" && keep "$@" ;;
  help | -h | --help) usage ;;
  *) fail "no such command: $command (launch/tpu_pod.sh help)" ;;
esac
