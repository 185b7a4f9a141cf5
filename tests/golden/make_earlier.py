"""Makes earlier/: files of an earlier version, and the numbers that it computed with them.

    git worktree add ../earlier 7896998
    PYTHONPATH=../earlier python tests/golden/make_earlier.py ../earlier

Made with the code of commit 7896998, Python 3.11, jax 0.10.2, flax 0.12.8, optax 0.2.8 and
orbax-checkpoint 0.12.8. `artifacts.tar.xz` holds runs stopped in the middle and finished, a folder
of images and the data set prepared from it, and converted files; `expected.json` the numbers of the
same runs when nothing stops them.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

# As the tests do, so that the same machine gives the same bits there.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = (
    '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
)

import earlier_runs as earlier
import jax
import numpy as np
from PIL import Image

from mae_jax import __main__ as command_line
from mae_jax.errors import Preempted
from mae_jax.training.metrics import MetricsWriter

SCRATCH = ('.lock', 'tensorboard', 'events.')
"""Files of a run that no later start reads."""
MAX_BYTES = 280_000
"""Of a checkpoint that is kept."""


def main() -> None:
    root = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        jax.config.update('jax_compilation_cache_dir', f'{folder}/compiled')  # runs are repeated
        make_images(Path('images'))
        command(*earlier.PREPARE)
        expected = {
            'prepared': {
                split: earlier.read_prepared('prepared', split) for split in ('train', 'validation')
            },
            'runs': {name: make_run(name, root) for name in earlier.COMMANDS},
            'converted': {name: convert(name) for name in earlier.CONVERTED},
        }
        pack(Path('.'), earlier.FOLDER / 'artifacts.tar.xz')
    text = json.dumps(expected, indent=1)
    text = re.sub(r'\[[^\[\]{}]*\]', lambda m: ' '.join(m[0].split()), text)  # a row, one line
    (earlier.FOLDER / 'expected.json').write_text(text + '\n')


def make_images(root: Path) -> None:
    """Writes eight grey pictures in two classes; those above 16 pixels are reduced when prepared.

    Grey, because versions of Pillow differ in the rounding of colours to grey.
    """
    rng = np.random.default_rng(0)
    for number, (split, label) in enumerate(
        [('train', 'cat')] * 3 + [('train', 'dog')] * 3 + [('val', 'cat'), ('val', 'dog')]
    ):
        pixels = rng.integers(0, 256, (6, 5), np.uint8)
        size = (14, 12) if number % 2 else (40, 30)
        name = f'{number}.png' if number % 4 < 2 else f'{number}.jpg'
        (root / split / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(
            root / split / label / name
        )


def make_run(name: str, root: Path) -> dict:
    """Runs a command to its end, for its numbers, and leaves the directory that is kept.

    That is the finished one, or one of the same run stopped.
    """
    arguments, workdir = earlier.COMMANDS[name], f'runs/{name}'
    earlier.run(arguments, 'whole', root)
    numbers = {'metrics': earlier.read_metrics('whole'), 'model': earlier.measure_model('whole')}
    shutil.rmtree('whole')
    last = earlier.STOPPED_AT if name in earlier.STOPPED else earlier.NUM_STEPS
    while not is_small(f'{workdir}/checkpoints'):
        shutil.rmtree(workdir, ignore_errors=True)
        with stopped_at(last), contextlib.suppress(Preempted):
            earlier.run(arguments, workdir, root)
    assert max(map(int, os.listdir(f'{workdir}/checkpoints'))) == last
    if name in earlier.EVALUATED:
        numbers['evaluation'] = earlier.evaluate(name, root)
    return numbers


def is_small(checkpoints: str) -> bool:
    """Returns whether there are checkpoints, each of them small.

    On a busy machine Orbax writes its index anew for every few arrays.
    """
    sizes = [
        sum(file.stat().st_size for file in step.rglob('*') if file.is_file())
        for step in Path(checkpoints).glob('*')
    ]
    return bool(sizes) and max(sizes) < MAX_BYTES


@contextlib.contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """Within it a run stops after `step`: SIGTERM is sent at the log line before, a step behind."""
    scalars = MetricsWriter.scalars

    def log(self, at, values):
        scalars(self, at, values)
        if at == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with mock.patch.object(MetricsWriter, 'scalars', log):
        yield


def convert(name: str) -> dict:
    command('convert', f'runs/{name}', f'{name}.safetensors')
    path = f'{name}.safetensors'
    return {'encoder': earlier.measure_encoder(path), 'model': earlier.measure_model(path)}


def command(*arguments: str) -> None:
    """Runs `mae-jax <arguments>`."""
    with mock.patch.object(sys, 'argv', ['mae-jax', *arguments]):
        command_line.main()


def pack(folder: Path, archive: Path) -> None:
    """Writes an archive of the runs, the images and what was made of them."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if Path(entry.name).name.startswith(SCRATCH):
            return None
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ''
        return entry

    archive.parent.mkdir(exist_ok=True)
    files = ['images', 'prepared', 'runs', *(f'{name}.safetensors' for name in earlier.CONVERTED)]
    with tarfile.open(archive, 'w:xz', preset=9) as tar:
        for file in files:
            tar.add(folder / file, arcname=file, filter=plain)


if __name__ == '__main__':
    main()
