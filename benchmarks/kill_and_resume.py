"""Kills a run, resumes it, and compares its parameters with those of a run that was left alone.

    python benchmarks/kill_and_resume.py vit_base --config.dataset.name=synthetic \\
        --config.deterministic=True --config.num_steps=20 --config.checkpoint_every_steps=5

The second run gets SIGKILL once its first checkpoint is complete. Ends with 1 if a bit differs.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]


def start(config: str, fields: list[str], workdir: Path) -> subprocess.Popen:
    """Starts a run, whose output goes to a log beside its work directory."""
    command = [sys.executable, 'main.py', f'--config={config}', *fields, f'--workdir={workdir}']
    with workdir.with_suffix('.log').open('a') as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def finish(run: subprocess.Popen, workdir: Path) -> None:
    """Waits for a run.

    Raises:
      SystemExit: it failed; with the end of its log.
    """
    if status := run.wait():
        log = workdir.with_suffix('.log').read_text()
        raise SystemExit(f'a run ended with {status}:\n{log[-2000:]}')


def kill_after_a_checkpoint(run: subprocess.Popen, workdir: Path) -> int:
    """Kills a run as soon as a checkpoint is complete, and returns that checkpoint's step.

    Raises:
      SystemExit: the run ended before.
    """
    while not (steps := saved(workdir)):
        if run.poll() is not None:
            raise SystemExit(f'the run to be killed ended first, with {run.returncode}')
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    return steps[0]


def saved(workdir: Path) -> list[int]:
    """Lists the steps of which a complete checkpoint exists; Orbax renames it when it is."""
    return sorted(int(p.name) for p in workdir.glob('checkpoints/*') if p.name.isdigit())


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    """Loads the parameters of a finished run by name."""
    import jax

    import mae_jax

    _, params = mae_jax.load(str(workdir))
    flat, _ = jax.tree.flatten_with_path(params)
    return {jax.tree_util.keystr(path): np.asarray(value) for path, value in flat}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='name or file; further arguments are its fields')
    args, fields = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, 'whole'), Path(folder, 'killed')
        finish(start(args.config, fields, whole), whole)
        step = kill_after_a_checkpoint(start(args.config, fields, killed), killed)
        finish(start(args.config, fields, killed), killed)
        one, other = parameters(whole), parameters(killed)
    different = [name for name in one if one[name].tobytes() != other[name].tobytes()]
    print(
        f'killed after the checkpoint of step {step} and resumed: '
        f'{len(one) - len(different)} of {len(one)} parameters equal in every bit'
    )
    if different or one.keys() != other.keys():
        raise SystemExit(f'different: {", ".join(different[:10])}')


if __name__ == '__main__':
    main()
