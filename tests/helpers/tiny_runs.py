"""Tiny runs in this process: pretraining of two blocks on digits, and what is made of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict
from PIL import Image

from helpers.commands import make_tiny_config
from mae_jax.checkpoints.manager import Checkpoints
from mae_jax.experiment.inherit import inherit
from mae_jax.experiment.setup import make_setup
from mae_jax.experiment.starting_state import starting_state
from mae_jax.training.state import TrainState

TINY = {
    'batch_size': 16,
    'num_steps': 6,
    'log_every_steps': 1,
    'eval_every_steps': 2,
    'checkpoint_every_steps': 3,
    'keep_last': 2,
    'dataset.threads': 2,
    'dataset.eval_crop_share': 1.0,
    'model.dtype': 'float32',
}
"""Six steps; the evaluation sees all of the held-out digits, 360."""

PLAIN = {
    'mix.mixup': 0.0,
    'mix.cutmix': 0.0,
    'dataset.erase': 0.0,
    'dataset.augment': '',
    'model.drop_path': 0.0,
    'eval_every_steps': 0,
    'checkpoint_every_steps': 100,
}
"""What makes a run quick to compile: nothing is drawn on the device, nothing evaluated."""

SIZES = {
    'image_size': (8, 8),
    'model.variant': 'vit_tiny',
    'model.patch_size': 2,
    'model.width': 16,
    'model.depth': 2,
    'model.heads': 4,
    'dataset.name': 'digits',
    'dataset.channels': 1,
    'dataset.scale': 255.0,
    'dataset.mean': (0.305,),
    'dataset.std': (0.376,),
}
"""Fields that a run without `init_from` must set."""

AVERAGED = {'ema_decay': 0.5, 'per_class': True, 'optimizer.eps': 1e-3}
"""Fine-tuning with averages; an epsilon at which Adam does not turn rounding into steps."""

TIMINGS = ('images_per_second', 'images_per_second_per_device', 'input_wait', 'eta_seconds')


def pretraining(**fields: Any) -> ConfigDict:
    """Four steps of pretraining a model of two blocks, 4 x 4 patches of digits."""
    config = make_tiny_config()
    changes = {'num_steps': 4, 'model.depth': 2, 'image_every_steps': 0} | fields
    config.update_from_flattened_dict(changes)
    return config


def classifying(
    recipe: Callable[[], ConfigDict], init_from: Path | None, fields: dict[str, Any] | None = None
) -> ConfigDict:
    """`recipe` (configs/finetune.py's get_config, say) on a pretrained model, made tiny."""
    config = recipe()
    config.init_from = init_from and str(init_from)
    quick = {'optimizer.base_lr': 0.02, 'optimizer.warmup_epochs': 0.0}
    config.update_from_flattened_dict(TINY | quick | (fields or {}))
    return config


def start(config: ConfigDict, workdir: Path) -> TrainState:
    """The state that a run would take its first step from; nothing is trained."""
    setup = make_setup(inherit(config, workdir), workdir)
    with Checkpoints(workdir / 'checkpoints', score='eval/top1') as checkpoints:
        return starting_state(setup, checkpoints)


def flat(tree: Any) -> dict[str, np.ndarray]:
    """'encoder/norm/scale'-like name -> array."""
    return {n: np.asarray(v) for n, v in traverse_util.flatten_dict(tree, sep='/').items()}


def metrics(workdir: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what a clock decides."""
    lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in TIMINGS} for line in lines]


def evaluations(workdir: Path) -> dict[int, dict[str, float]]:
    """Returns step -> metrics on the held-out images."""
    return {line['step']: line for line in metrics(workdir) if 'eval/loss' in line}


def make_image_folder(root: Path, classes: str, count: int = 16, size: int = 8) -> Path:
    """`count` grey PNGs of noise in root/<class>/ for each letter; in root itself for ''."""
    rng = np.random.default_rng(len(classes))
    for folder in [root / name for name in classes] or [root]:
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (size, size), np.uint8)
            Image.fromarray(pixels).save(folder / f'{number}.png')
    return root
