#!/usr/bin/env bash
# Several processes of one run on this machine, connected over the loopback.
#
#   launch/local.sh N --config=... [--workdir=...] [--config.field=value ...]
#   launch/local.sh 2 --config=configs/quickstart.py
#
# N processes run `python main.py` with the flags given; GPUs are shared out evenly between them, a
# CPU is left to all. What process 0 writes is shown as it is, lines of the others begin with `[1] `.
# Ctrl-C or SIGTERM stops all of them: they save, and the status is 75; once more kills them.
#
# Preemption and faults: where a process is lost (it was killed, or another one ends with status 76
# because of it) the others end too, and all are started again on a new port, RESTARTS times at
# most. They resume from the last checkpoint. A finished run (0), a user's mistake (1), a loss that
# is not finite (3) and a run stopped by a signal (75) are not started again; the status is passed
# on.
#
# Environment: PYTHON=python, RESTARTS=3, PORT=<a free one>, GRACE=90 (seconds that the processes
# left have to end by themselves after one failed), DRY_RUN=1 (prints the commands, runs nothing).
set -euo pipefail

fail() { echo "local.sh: $*" >&2; exit 1; }

[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || fail 'usage: launch/local.sh N --config=... [more flags of main.py]'
processes=$1
shift
python=${PYTHON:-python}
restarts=${RESTARTS:-3}
grace=${GRACE:-90}
main=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/main.py

# How many GPUs JAX would use.
count_gpus() {
  case ,${JAX_PLATFORMS:-cuda}, in
    *,cuda,* | *,gpu,*) ;;
    *) echo 0 && return ;; # JAX may use none
  esac
  if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
    local -a visible
    IFS=, read -ra visible <<<"${CUDA_VISIBLE_DEVICES/#-1*/}"
    echo "${#visible[@]}"
  elif command -v nvidia-smi >/dev/null; then
    nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true
  else
    echo 0
  fi
}

gpus=$(count_gpus)
((gpus % processes == 0)) || fail "$gpus GPUs cannot be shared evenly by $processes processes."

free_port() { # outside the range the system hands out by itself
  local port
  while port=$((10000 + RANDOM % 20000)); (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

# environment I PORT: the variables with which process I joins the others, in the array `settings`.
environment() {
  settings=(
    "JAX_COORDINATOR_ADDRESS=127.0.0.1:$2"
    "JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$2" # not on the network
    "JAX_NUM_PROCESSES=$processes"
    "JAX_PROCESS_ID=$1"
  )
  local share=$((gpus / processes))
  if ((share)); then
    settings+=("JAX_LOCAL_DEVICE_IDS=$(seq -s, $(($1 * share)) $((($1 + 1) * share - 1)))")
  fi
}

if [[ -n ${DRY_RUN:-} ]]; then
  port=${PORT:-$(free_port)}
  for ((i = 0; i < processes; i++)); do
    environment "$i" "$port"
    echo "${settings[*]} $(printf '%q ' "$python" "$main" "$@")" | sed 's/ $//'
  done
  exit
fi

pids=()     # of every process of this round, by its number; each leads a process group
prefixes=() # of what puts `[1] ` before lines
statuses=() # of the processes that ended
warned=()   # who has been sent SIGTERM
stops=0     # number of signals to stop that this script got

start() { # start I PORT FLAGS...
  local i=$1 out err
  environment "$i" "$2"
  shift 2
  if ((i)); then
    exec {out}> >(trap '' INT TERM HUP && exec sed -u "s/^/[$i] /" >&2) {err}>&"$out"
    prefixes+=("$!")
  else
    exec {out}>&1 {err}>&2
  fi
  set -m # a process group of its own: a Ctrl-C of the terminal reaches this script alone
  env "${settings[@]}" "$python" "$main" "$@" </dev/null >&"$out" 2>&"$err" {out}>&- {err}>&- &
  pids[i]=$!
  set +m
  exec {out}>&- {err}>&-
}

pass_on() { # one SIGTERM to each, however often this is called
  local i
  for i in "${!pids[@]}"; do
    if [[ -z ${warned[i]:-}${statuses[i]:-} ]]; then kill -TERM "${pids[i]}" 2>/dev/null || true; fi
    warned[i]=1
  done
}

kill_all() { # with what they started themselves
  local pid
  for pid in "${pids[@]}"; do kill -KILL -- "-$pid" 2>/dev/null || true; done
}

stop() {
  stops=$((stops + 1))
  if ((stops == 1)); then
    echo 'local.sh: stopping: the processes save and end (a second signal kills them)' >&2
    pass_on
  else
    kill_all
  fi
}
trap 'stop' INT TERM HUP
trap 'kill_all' EXIT

# Waits for all. Sets `finished` to how many ended with 0, and `cause` to the status of the one that
# failed first, unless another failed with 1 or 3, which is the cause of the loss. From the first
# failure on the others get `grace` seconds.
await() {
  local i status deadline=
  cause=0 finished=0
  while ((${#statuses[@]} < ${#pids[@]})); do
    sleep 0.2 || true
    for i in "${!pids[@]}"; do
      if [[ -n ${statuses[i]:-} ]] || kill -0 "${pids[i]}" 2>/dev/null; then continue; fi
      status=0
      wait "${pids[i]}" || status=$?
      statuses[i]=$status
      if ((status == 0)); then finished=$((finished + 1)); fi
      if ((cause == 0 || status == 1 || status == 3)); then cause=$status; fi
    done
    if ((cause)); then deadline=${deadline:-$((SECONDS + grace))}; fi
    if [[ -n $deadline ]] && ((SECONDS > deadline)); then kill_all; fi
  done
  kill_all # what they left behind
  if ((${#prefixes[@]})); then wait "${prefixes[@]}" || true; fi
}

for ((round = 0; ; round++)); do
  pids=() prefixes=() statuses=() warned=()
  if [[ -n ${PORT:-} ]]; then port=$((PORT + round)); else port=$(free_port); fi
  for ((i = 0; i < processes && !stops; i++)); do start "$i" "$port" "$@"; done
  if ((stops)); then pass_on; fi # to one that was just being started
  await
  if ((finished == processes || cause == 1 || cause == 3)); then exit "$cause"; fi
  if ((stops || cause == 75)); then exit 75; fi
  if ((cause != 76 && cause < 128)); then exit "$cause"; fi # such as 127: no such command
  if ((round >= restarts)); then
    echo "local.sh: a process was lost (status $cause), after $restarts restarts: given up" >&2
    exit "$cause"
  fi
  echo "local.sh: a process was lost (status $cause): restart $((round + 1)) of $restarts" >&2
done
