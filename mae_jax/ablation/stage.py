"""One stage of an ablation: a run of `mae_jax.run` in a process of its own.

Its work directory holds three files more: asked.json (its config), log.txt (what it said) and
result.json (what came out). JAX starts in that process alone: an accelerator belongs to one.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mae_jax.config.saved import from_json, to_json
from mae_jax.errors import EXIT_PREEMPTED, UserError
from mae_jax.experiment.workdir import MAY_CHANGE
from mae_jax.runtime.xla_flags import set_xla_flags

ASKED, LOG, RESULT = 'asked.json', 'log.txt', 'result.json'
STOPPED = (EXIT_PREEMPTED, -signal.SIGTERM, -signal.SIGINT)
"""Exit statuses of a stage that was told to stop."""


class Stage(NamedTuple):
    """What to run, and where."""

    run: str
    seed: int
    name: str
    """pretrain, linprobe or finetune."""
    config: ConfigDict
    directory: Path

    @property
    def removable(self) -> Path:
        """What must go for this to be run anew: of a pretraining, what came of it as well."""
        return self.directory.parent if self.name == 'pretrain' else self.directory


def run_stage(stage: Stage) -> dict[str, Any]:
    """Runs a stage to its end, from its last checkpoint if it has one.

    Returns:
      Its result: `status` ('done' or 'failed'), `exit_status`, `seconds` of this start and
      `resumed` (whether there was a start before it); if done `top1` or, of pretraining, `loss`,
      and `images_per_second` (the median); if failed `error`.

    Raises:
      SystemExit: the stage was told to stop, not by this process.
    """
    directory, resumed = stage.directory, has_begun(stage)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / RESULT).unlink(missing_ok=True)  # of a start that failed
    write(directory / ASKED, to_json(stage.config))
    log, started = directory / LOG, time.perf_counter()
    said_before = log.stat().st_size if log.exists() else 0
    exit_status = _run_child(directory, log)
    if exit_status in STOPPED:
        raise SystemExit(EXIT_PREEMPTED)
    result = {'exit_status': exit_status, 'resumed': resumed}
    result['seconds'] = round(time.perf_counter() - started, 1)
    try:
        found = {} if exit_status else read_metrics(directory / 'metrics.jsonl', stage.name)
        error = _last_words(log, said_before, exit_status) if exit_status else ''
    except (OSError, KeyError) as missing:
        found, error = {}, f'metrics.jsonl says nothing of {missing}'
    result |= {'status': 'failed', 'error': error} if error else {'status': 'done', **found}
    write(directory / RESULT, json.dumps(result, indent=2) + '\n')
    return result


def read_result(stage: Stage) -> dict[str, Any]:
    """What `run_stage` returned; empty for a stage that has not ended."""
    try:
        return json.loads((stage.directory / RESULT).read_text())
    except (FileNotFoundError, ValueError):
        return {}


def is_done(stage: Stage) -> bool:
    """Whether there is nothing left to run."""
    return read_result(stage).get('status') == 'done'


def has_begun(stage: Stage) -> bool:
    """Whether there is work of its config that another config would lose."""
    checkpoints = stage.directory / 'checkpoints'
    saved = checkpoints.exists() and any(p.name.isdecimal() for p in checkpoints.iterdir())
    return saved or is_done(stage)


def refuse_changed(stage: Stage) -> None:
    """Raises a UserError if the stage has begun with a config that makes it another run."""
    try:
        before = json.loads((stage.directory / ASKED).read_text())
    except (FileNotFoundError, ValueError):
        return
    changed = [
        told
        for field, told in _differences(before, json.loads(to_json(stage.config)))
        # Its pretraining is always the one beside it, wherever the directory has moved.
        if field != 'init_from' and not any(fnmatchcase(field, may) for may in MAY_CHANGE)
    ]
    if changed and has_begun(stage):
        raise UserError(
            f'{stage.directory} was run with another config ({"; ".join(changed)}): choose another '
            f'--out, give the fields their old values, or remove {stage.removable}.'
        )


def _differences(before: Any, now: Any, field: str = '') -> Iterator[tuple[str, str]]:
    """(field, 'field was old, now new') for each that differs between two trees of JSON."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f'{field}.{key}'.lstrip('.'))
    elif before != now:
        old, new = ('unset' if value is None else repr(value) for value in (before, now))
        yield field, f'{field} was {old}, now {new}'


def read_metrics(path: Path, stage: str) -> dict[str, float]:
    """The last `eval/top1` of a run (of pretraining: `loss`), and its median images a second.

    Raises:
      KeyError, OSError: it is not there.
    """
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    name = 'loss' if stage == 'pretrain' else 'eval/top1'
    values = [line[name] for line in lines if name in line]
    if not values:
        raise KeyError(name)
    rates = [line['images_per_second'] for line in lines if 'images_per_second' in line]
    speed = {'images_per_second': round(statistics.median(rates), 1)} if rates else {}
    return {name.removeprefix('eval/'): values[-1], **speed}


def write(path: Path, text: str) -> None:
    """Replaces a file in one go: a reader, or a kill, finds the old one or the new one."""
    fresh = path.with_name(f'.{os.getpid()}.{path.name}')
    fresh.write_text(text)
    fresh.replace(path)


def _last_words(log: Path, since: int, exit_status: int) -> str:
    """Why a process says it ended: its error, or its last line."""
    with log.open('rb') as file:
        file.seek(since)
        lines = [line for line in file.read().decode(errors='replace').splitlines() if line.strip()]
    said = [line.removeprefix('error: ') for line in lines if line.startswith('error: ')] or lines
    killed = [f'killed by {signal.Signals(-exit_status).name}'] if exit_status < 0 else []
    return ': '.join([*killed, *said[-1:]]) or 'it said nothing'


def _run_child(directory: Path, log: Path) -> int:
    """The exit status of the stage's process; when this one is told to stop, so is that."""
    command = [sys.executable, '-m', 'mae_jax.ablation.stage', str(directory)]
    with log.open('ab') as file:
        # A session of its own: the terminal's Ctrl-C comes here alone, and goes on as one SIGTERM.
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
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # who kills may do so twice; it saves
            child.terminate()
            child.wait()


def _child(directory: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    config = from_json((Path(directory) / ASKED).read_text())
    set_xla_flags(config.deterministic)
    from mae_jax.experiment.run import run
    from mae_jax.runtime.compilation_cache import keep_compiled
    from mae_jax.runtime.library_noise import silence_libraries

    silence_libraries()
    keep_compiled()
    try:
        run(config, directory)
    except UserError as error:
        print(f'error: {error}', flush=True)
        os._exit(error.exit_status)  # a thread that hangs in a read would hold the exit up


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone, however that was."""
    os.read(0, 1)  # returns when the other end of the pipe is closed
    os._exit(EXIT_PREEMPTED)


if __name__ == '__main__':
    _child(sys.argv[1])
