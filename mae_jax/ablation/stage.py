"""Runs one stage of an ablation: a run of `mae_jax.run` in a process of its own.

Its work directory holds three more files: asked.json (its config), log.txt (its output) and
result.json (its result). Only that process imports JAX, since one process holds the accelerator.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mae_jax.config.changes import changed_fields, may_change
from mae_jax.config.recipe import keep
from mae_jax.config.saved import from_json, to_json
from mae_jax.errors import EXIT_PREEMPTED, UserError
from mae_jax.runtime.xla_flags import set_xla_flags

CONFIG, LOG, RESULT = 'asked.json', 'log.txt', 'result.json'
METRICS = {'pretrain': ('loss',), 'probe': ('knn', 'linear')}
"""Stage -> what is read of it; that of others is `eval/top1`."""
STOPPED = (EXIT_PREEMPTED, -signal.SIGTERM, -signal.SIGINT)
"""Exit statuses of a stage that was stopped by a signal."""


class Stage(NamedTuple):
    """Describes one run: its config and its work directory."""

    run: str
    seed: int
    name: str
    """pretrain, linprobe, finetune or probe."""
    config: ConfigDict
    directory: Path

    @property
    def removable(self) -> Path:
        """Returns the directory to remove before this can run anew.

        That of a pretraining includes the stages that started from it.
        """
        return self.directory.parent if self.name == 'pretrain' else self.directory


def run_stage(stage: Stage) -> dict[str, Any]:
    """Runs a stage to its end, from its last checkpoint if it has one.

    Returns:
      Its result: `status` ('done' or 'failed'), `exit_status`, `seconds` of this start and
      `resumed` (whether it continued an earlier start); if done the values of `read_metrics`; if
      failed `error`.

    Raises:
      SystemExit: the stage was stopped by a signal that another process sent.
    """
    directory, resumed = stage.directory, has_begun(stage)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RESULT).unlink(missing_ok=True)  # of a start that failed
    write_file(directory / CONFIG, to_json(stage.config))
    log, started = directory / LOG, time.perf_counter()
    log_start = log.stat().st_size if log.exists() else 0
    exit_status = _run_child(directory, log)
    if exit_status in STOPPED:
        raise SystemExit(EXIT_PREEMPTED)
    result = {'exit_status': exit_status, 'resumed': resumed}
    result['seconds'] = round(time.perf_counter() - started, 1)
    path = directory / ('results.jsonl' if stage.name == 'probe' else 'metrics.jsonl')
    try:
        metrics = {} if exit_status else read_metrics(path, stage.name)
        error = _read_error(log, log_start, exit_status) if exit_status else ''
    except (OSError, KeyError) as missing:
        metrics, error = {}, f'{path.name} has no {missing}'
    result |= {'status': 'failed', 'error': error} if error else {'status': 'done', **metrics}
    write_file(directory / RESULT, json.dumps(result, indent=2) + '\n')
    return result


def read_result(stage: Stage) -> dict[str, Any]:
    """Reads what `run_stage` returned; empty for a stage that has not ended."""
    try:
        return json.loads((stage.directory / RESULT).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def is_done(stage: Stage) -> bool:
    """Returns whether the stage has ended without an error."""
    return read_result(stage).get('status') == 'done'


def has_begun(stage: Stage) -> bool:
    """Returns whether the stage has a checkpoint or a result, which another config would lose."""
    checkpoints = stage.directory / 'checkpoints'
    saved = checkpoints.exists() and any(p.name.isdecimal() for p in checkpoints.iterdir())
    return saved or is_done(stage)


def refuse_changed(stage: Stage) -> None:
    """Raises a UserError if the stage has begun with a config that makes it another run."""
    try:
        before = from_json((stage.directory / CONFIG).read_text())
    except (FileNotFoundError, ValueError):
        return
    config = stage.config.copy_and_resolve_references()
    keep(config, before)
    # Its pretraining is always in the directory beside it, even after a move.
    follows = config.init_from == str(stage.directory.parent / 'pretrain')
    changed = [
        line
        for field, line in changed_fields(before, config).items()
        if not (field == 'init_from' and follows) and not may_change(field)
    ]
    if changed and has_begun(stage):
        raise UserError(
            f'{stage.directory} was run with another config ({"; ".join(changed)}): choose another '
            f'--out, give the fields their old values, or remove {stage.removable}.'
        )


def read_metrics(path: Path, stage: str) -> dict[str, float]:
    """Reads the last values of a run.

    Args:
      path: its metrics.jsonl or, for 'probe', results.jsonl.
      stage: its name.

    Returns:
      `loss` for 'pretrain', `knn` and `linear` for 'probe', else `top1`; and `images_per_second`,
      the median, of a run that trains.

    Raises:
      KeyError, OSError: there is no such value or file.
    """
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    metrics = {}
    for name in METRICS.get(stage, ('eval/top1',)):
        values = [line[name] for line in lines if name in line]
        if not values:
            raise KeyError(name)
        metrics[name.removeprefix('eval/')] = values[-1]
    rates = [line['images_per_second'] for line in lines if 'images_per_second' in line]
    speed = {'images_per_second': round(statistics.median(rates), 1)} if rates else {}
    return metrics | speed


def write_file(path: Path, text: str) -> None:
    """Replaces a file atomically: a reader, or a kill, leaves the old content or the new one."""
    fresh = path.with_name(f'.{os.getpid()}.{path.name}')
    fresh.write_text(text)
    fresh.replace(path)


def _read_error(log: Path, start: int, exit_status: int) -> str:
    """Returns the reason why a process ended: its error message, or its last line of output.

    Args:
      start: where the output of this start begins in the log, in bytes.
    """
    with log.open('rb') as file:
        file.seek(start)
        lines = [line for line in file.read().decode(errors='replace').splitlines() if line.strip()]
    errors = [line.removeprefix('error: ') for line in lines if line.startswith('error: ')]
    killed = [f'killed by {signal.Signals(-exit_status).name}'] if exit_status < 0 else []
    return ': '.join([*killed, *(errors or lines)[-1:]]) or 'no output'


def _run_child(directory: Path, log: Path) -> int:
    """Runs the stage's process, and stops it when this one is stopped; returns its exit status."""
    command = [sys.executable, '-m', 'mae_jax.ablation.stage', str(directory)]
    with log.open('ab') as file:
        # In a new session it does not get the terminal's Ctrl-C, only the one SIGTERM below.
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return child.wait()
    finally:
        if child.poll() is None:
            # Whoever stops this process may send a second signal while the child still saves.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            child.terminate()
            child.wait()


def _child(directory: str) -> None:
    """Runs the config of a stage in its directory; the whole of the stage's process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    config = from_json((Path(directory) / CONFIG).read_text())
    set_xla_flags(config.deterministic)
    from mae_jax.experiment.run import run
    from mae_jax.runtime.compilation_cache import keep_compiled
    from mae_jax.runtime.failures import ending_together
    from mae_jax.runtime.library_noise import silence_libraries

    silence_libraries()
    keep_compiled(directory)
    try:
        with ending_together():
            run(config, directory)
    except UserError as error:
        print(f'error: {error}', flush=True)
        os._exit(error.exit_status)  # a thread that hangs in a read would hold the exit up


def _end_with_parent() -> None:
    """Ends this process when the one that started it has ended, in whatever way."""
    os.read(0, 1)  # returns when the other end of the pipe is closed
    os._exit(EXIT_PREEMPTED)


if __name__ == '__main__':
    _child(sys.argv[1])
