"""Compares the losses of a deep, narrow model in bfloat16 with those in float32.

    python benchmarks/bfloat16_losses.py --images=/path/to/images

The runs have the same initial weights, images, order and masks. Images are decoded once, without
cropping; a folder of any structure is read. Printed are means over hundreds of steps.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from measure import hardware, markdown, versions
from PIL import Image

from mae_jax.config.model import make_mae, statistics
from mae_jax.configs import default
from mae_jax.models.mae import MAE

CHUNK = 100
CONTENDERS = {
    'float32': dict(dtype='float32'),
    'bfloat16, float32 stream': dict(dtype='bfloat16', residual_dtype='float32'),
    'bfloat16, bfloat16 stream': dict(dtype='bfloat16', residual_dtype='bfloat16'),
}


def make_config(args: argparse.Namespace, fields: dict[str, Any]) -> Any:
    """Makes the config of a deep, narrow model."""
    config = default.get_config()
    config.image_size = (args.image_size, args.image_size)
    config.model.update(variant='vit_tiny', patch_size=8, width=args.width, depth=24, heads=3)
    config.model.update(decoder_width=args.width, decoder_depth=8, decoder_heads=3)
    config.model.update(scan=True, attention='plain', **fields)
    return config


def read_images(folder: str, size: int) -> np.ndarray:
    """Reads all JPEG and PNG files below a folder: uint8 [N, size, size, 3]."""
    paths = [p for p in Path(folder).rglob('*') if p.suffix.lower() in ('.jpg', '.jpeg', '.png')]
    images = []
    for path in sorted(paths):
        with Image.open(path) as image:
            image.draft('RGB', (size, size))
            images.append(np.asarray(image.convert('RGB').resize((size, size), Image.BILINEAR)))
    return np.stack(images)


def make_steps(
    model: MAE, tx: optax.GradientTransformation, images: np.ndarray, batch_size: int, scales: dict
) -> Callable[..., tuple[Any, jax.Array]]:
    """Makes a function that takes `CHUNK` steps and returns the new state and their losses."""
    mean, std = (jnp.asarray(scales[name], jnp.float32) for name in ('mean', 'std'))

    def step(state, number):
        params, opt_state = state
        image_key, mask_key = jax.random.split(jax.random.fold_in(jax.random.key(1), number))
        chosen = jax.random.randint(image_key, (batch_size,), 0, len(images))
        batch = (jnp.asarray(images)[chosen] / scales['scale'] - mean) / std

        def loss(params):
            return model.apply({'params': params}, batch, rngs={'mask': mask_key}).loss

        value, gradient = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    return jax.jit(lambda state, numbers: jax.lax.scan(step, state, numbers))


def make_tx(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Makes AdamW of all parameters but the position tables, which are not trained."""

    def group(path, _):
        return 'fixed' if path[-1].key == 'pos_embed' else 'trained'

    adamw = optax.adamw(schedule, b2=0.95, weight_decay=0.05)
    return optax.multi_transform(
        {'trained': adamw, 'fixed': optax.set_to_zero()},
        lambda params: jax.tree_util.tree_map_with_path(group, params),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--images', required=True)
    parser.add_argument('--image_size', type=int, default=32)
    parser.add_argument('--width', type=int, default=48)
    parser.add_argument('--batch_size', type=int, default=8)
    parser.add_argument('--steps', type=int, default=2000)
    parser.add_argument('--learning_rate', type=float, default=5e-4)
    args = parser.parse_args()
    images = read_images(args.images, args.image_size)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, args.learning_rate, args.steps // 20, args.steps
    )
    tx = make_tx(schedule)
    runs, states, losses = {}, {}, {name: [] for name in CONTENDERS}
    for name, fields in CONTENDERS.items():
        config = make_config(args, fields)
        model = make_mae(config)
        params = jax.jit(model.init)(
            {'params': jax.random.key(0), 'mask': jax.random.key(0)}, images[:1] / 255.0
        )['params']
        runs[name] = make_steps(model, tx, images, args.batch_size, statistics(config))
        states[name] = params, tx.init(params)
    for start in range(0, args.steps, CHUNK):
        for name, run in runs.items():
            states[name], chunk = run(states[name], jnp.arange(start, start + CHUNK))
            losses[name].append(float(chunk.mean()))
        print(start + CHUNK, *(f'{losses[name][-1]:.4f}' for name in runs), flush=True)
    shown = [n for n in (500, 1000, 1500, 2000) if n <= args.steps]
    rows = [[name, *(f'{losses[name][n // CHUNK - 1]:.4f}' for n in shown)] for name in runs]
    notes = [hardware(), versions(), f'{vars(args)}']
    print(markdown(notes, ['dtype', *(f'{n - CHUNK} to {n}' for n in shown)], rows))


if __name__ == '__main__':
    main()
