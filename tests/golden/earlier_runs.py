"""The commands behind tests/golden/earlier/, and what is measured of their results.

    python tests/golden/earlier_runs.py

evaluates and resumes the runs of `earlier/artifacts.tar.xz`, unpacked in the current directory.
`make_earlier.py` made them with an earlier version. All paths are relative to that directory.
"""

import contextlib
import io
import json
import re
import shutil
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from absl import flags
from flax import traverse_util
from ml_collections import ConfigDict, config_flags

import mae_jax

FOLDER = Path(__file__).parent / 'earlier'
NUM_STEPS, STOPPED_AT = 10, 6
STOPPED = ('pretraining', 'fine_tuning')
"""Runs that SIGTERM stopped at step `STOPPED_AT`; the others are finished."""

_SIZES = ('--config.model.width=8', '--config.model.depth=2', '--config.model.heads=2')
_LENGTH = (
    f'--config.num_steps={NUM_STEPS}',
    '--config.batch_size=16',
    '--config.log_every_steps=1',
    '--config.eval_every_steps=5',
    '--config.checkpoint_every_steps=5',
    '--config.optimizer.warmup_epochs=0.0',
    '--config.dataset.threads=1',
)
# Adam divides by almost nothing where a gradient is almost zero, and would turn the rounding of
# another CPU into steps; with this epsilon it does not.
_EPSILON = '--config.optimizer.eps=1e-3'
COMMANDS = {
    'pretraining': (
        '--config=configs/quickstart.py',
        *_SIZES,
        *_LENGTH,
        '--config.model.decoder_width=8',
        '--config.model.decoder_heads=2',
        '--config.image_every_steps=0',
        '--config.probe_at_end=False',
        '--config.keep_last=1',
        _EPSILON,
    ),
    'fine_tuning': (
        '--config=configs/finetune_digits.py',
        '--config.init_from=runs/pretraining',
        *_SIZES,
        *_LENGTH,
        '--config.keep_last=1',
        _EPSILON,
        '--config.optimizer.base_lr=0.02',
        '--config.ema_decay=0.5',
    ),
    'linear_probe': (
        '--config=configs/linprobe.py',
        '--config.init_from=runs/pretraining',
        *_LENGTH,
        '--config.dataset.name=prepared',
        '--config.dataset.path=prepared',
        '--config.dataset.flip=False',
        '--config.dataset.eval_crop_share=1.0',
    ),
}
"""Name of a run in runs/ -> the flags of main.py."""

PREPARE = ('prepare', 'images', 'prepared', '--short_side=16', '--channels=1')
PREPARE += ('--shard_examples=2', '--workers=1')
RESUMES_AT = {'pretraining': STOPPED_AT, 'fine_tuning': STOPPED_AT, 'linear_probe': 5}
"""Name of a run -> the step that `go_on` resumes it from."""
EVALUATED = ('fine_tuning', 'linear_probe')
"""Runs whose evaluation by `--config.mode=eval` was recorded, before they were resumed."""
CONVERTED = ('pretraining', 'fine_tuning')
"""Runs that `mae-jax convert runs/<name> <name>.safetensors` was run on."""

CLOCK = ('images_per_second', 'images_per_second_per_device', 'input_wait', 'eta_seconds')

IMAGES = (np.arange(4 * 8 * 8) * 37 % 251).astype(np.uint8).reshape(4, 8, 8, 1)
NOISE = (np.arange(4 * 16) * 29 % 64 / 64).astype(np.float32).reshape(4, 16)


def make_config(arguments: Sequence[str], root: Path) -> ConfigDict:
    """Returns the config that main.py makes of its flags; configs/ is looked for in `root`."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file('config', flag_values=values)
    name, *others = arguments
    argv = ['main.py', name.replace('=', f'={root}/'), *others]
    with mock.patch.object(sys, 'argv', argv):  # where the fields after the file are looked for
        values(argv)
    return values['config'].value


def run(arguments: Sequence[str], workdir: str, root: Path) -> None:
    """Runs the command `main.py --workdir=<workdir> <arguments>` in this process."""
    try:
        from mae_jax.run import run  # the version that made the files
    except ImportError:
        from mae_jax import run
    run(make_config(arguments, root), workdir)


def evaluate(name: str, root: Path, *changes: str, workdir: str | None = None) -> list[str]:
    """Returns the accuracies and the loss that a run prints with `--config.mode=eval`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        arguments = (*COMMANDS[name], '--config.mode=eval', *changes)
        run(arguments, workdir or f'runs/{name}', root)
    return re.findall(r'\d\.\d{4}', printed.getvalue())


def go_on(root: Path) -> None:
    """Evaluates the runs, into evaluations.json, then resumes them.

    The linear probe is finished: it resumes from the checkpoint before its last. What fine-tuning
    and the linear probe started from is removed before.
    """
    converted = '--config.init_from=fine_tuning.safetensors'
    evaluations = {name: evaluate(name, root) for name in EVALUATED} | {
        'converted': evaluate('fine_tuning', root, converted, workdir='runs/converted')
    }
    Path('evaluations.json').write_text(json.dumps(evaluations))
    run(COMMANDS['pretraining'], 'runs/pretraining', root)
    Path('runs/pretraining').rename('runs/elsewhere')
    shutil.rmtree(f'runs/linear_probe/checkpoints/{NUM_STEPS}')
    for name in ('fine_tuning', 'linear_probe'):
        run(COMMANDS[name], f'runs/{name}', root)
    Path('runs/elsewhere').rename('runs/pretraining')


def read_metrics(workdir: str | Path) -> list[dict[str, float]]:
    """Returns the lines of metrics.jsonl without what a clock decides."""
    lines = map(json.loads, (Path(workdir) / 'metrics.jsonl').read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


def measure_encoder(path: str | Path) -> dict[str, Any]:
    """Returns features of `IMAGES` by `mae_jax.load_encoder`, mean of the patches and cls token."""
    module, params = mae_jax.load_encoder(path)
    images = mae_jax.load_normalize(path)(IMAGES)

    @jax.jit
    def features(params, images):
        options = {'variables': {'params': params}, 'method': 'features'}
        return [module.apply(images=images, output=name, **options) for name in ('mean', 'cls')]

    mean, cls = features(params, images)
    return {'mean': np.asarray(mean).tolist(), 'cls': np.asarray(cls).tolist()}


def measure_model(path: str | Path) -> dict[str, Any]:
    """Returns what `mae_jax.load` gives: the root mean square of each parameter, and an output.

    That is the loss of `IMAGES` masked by `NOISE`; of a classifier, their logits.
    """
    module, params = mae_jax.load(path)
    images = mae_jax.load_normalize(path)(IMAGES)
    if 'decoder' in params:
        apply = jax.jit(lambda p, x: module.apply({'params': p}, x, noise=NOISE).loss)
    else:
        apply = jax.jit(lambda p, x: module.apply({'params': p}, x))
    squares = {
        name: float(np.sqrt(np.square(np.asarray(value, np.float64)).mean()))
        for name, value in traverse_util.flatten_dict(params, sep='/').items()
    }
    return {'params': squares, 'output': np.asarray(apply(params, images)).tolist()}


def read_prepared(path: str, split: str) -> list[dict[str, Any]]:
    """Returns label, name and CRC-32 of the stored image of every example of a prepared split."""
    from mae_jax.data.sources.make import make_source

    source = make_source('prepared', split, path=path, channels=1)
    examples = (source[i] for i in range(len(source)))
    return [example | {'image': zlib.crc32(example['image'])} for example in examples]


if __name__ == '__main__':
    go_on(Path(__file__).parents[2])
