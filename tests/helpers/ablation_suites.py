"""A small suite of ablations on real digits, and the command that runs it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from helpers.commands import ROOT
from helpers.environment import xla_flags
from helpers.tiny_runs import SIZES

COMMON = {
    'model.dtype': 'float32',
    'dataset.threads': 2,
    'dataset.eval_crop_share': 1.0,
    'dataset.flip': False,
    'batch_size': 16,
    'num_steps': 60,
    'log_every_steps': 1,
    'checkpoint_every_steps': 10,
    'keep_last': 1,
}
PRETRAIN = COMMON | SIZES
PRETRAIN |= {'model.depth': 1, 'model.decoder_width': 16, 'model.decoder_depth': 1}
PRETRAIN |= {'model.decoder_heads': 4, 'eval_every_steps': 0, 'image_every_steps': 0}
FINETUNE = COMMON | {'model.drop_path': 0.0, 'mix.mixup': 0.0, 'mix.cutmix': 0.0}
FINETUNE |= {'dataset.augment': '', 'dataset.erase': 0.0, 'eval_every_steps': 30}
LINPROBE = COMMON | {'cache_features': True, 'num_steps': 30}

ROWS = ('decoder_depth_1', 'target_pixel', 'decoder_width_128', 'target_normalized_pixel')
"""Two rows that are the same run, one that fails, and another."""
CHANGES = {'decoder_width_128': {'model.decoder_width': 6}}  # four heads do not divide it


def write_suite(path: Path, rows=ROWS, changes=CHANGES, pretrain=PRETRAIN) -> Path:
    """Writes a suite's file, as a user would, and returns its path."""
    stages = {'pretrain': pretrain, 'linprobe': LINPROBE, 'finetune': FINETUNE}
    fields = {'rows': rows, 'seeds': (0,), 'changes': changes, **stages}
    lines = [f'    suite.{name} = {value!r}' for name, value in fields.items()]
    head = ['from ml_collections import ConfigDict', '', '', 'def get_suite():']
    head += ['    suite = ConfigDict(convert_dict=False)']
    path.write_text('\n'.join([*head, *lines, '    return suite', '']))
    return path


def start(suite: Path, out: Path, *arguments: str) -> subprocess.Popen:
    """Starts `mae-jax ablate`."""
    return subprocess.Popen(
        [sys.executable, '-m', 'mae_jax', 'ablate', f'--suite={suite}', f'--out={out}', *arguments],
        cwd=ROOT,
        env=os.environ | {'XLA_FLAGS': xla_flags()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would what they start, as these tests.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(suite: Path, out: Path, *arguments: str) -> tuple[int, str]:
    """Runs `mae-jax ablate` to its end: exit status, output."""
    process = start(suite, out, *arguments)
    output, _ = process.communicate(timeout=600)
    return process.returncode, output


def read_table(text: str) -> dict[str, list[str]]:
    """Reads all Markdown tables in a text: label of a row -> its cells."""
    lines = [line.strip('|').split('|') for line in text.splitlines() if line.startswith('|')]
    cells = [[cell.strip() for cell in line] for line in lines]
    assert {len(line) for line in cells} == {6}
    return {label: rest for label, *rest in cells if label != 'row' and set(label) != {'-'}}


def results(out: Path) -> dict:
    """Reads results.json: run -> seed -> stage -> result."""
    return json.loads((out / 'results.json').read_text())['runs']


def darkest(images):
    """Tokenizes images: the index of the darkest pixel in each patch of 8 x 8."""
    b, h, w, _ = images.shape
    patches = images.mean(-1).reshape(b, h // 8, 8, w // 8, 8).transpose(0, 1, 3, 2, 4)
    return patches.reshape(b, h // 8, w // 8, 64).argmin(-1)
