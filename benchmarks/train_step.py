"""Speed of the pretraining step, beside Hugging Face's ViTMAE in eager PyTorch.

    python benchmarks/train_step.py --variant=vit_base --batch_size=8 --dtype=float32 --repeats=10

Prints a Markdown table. The peer is measured where torch and transformers are installed and JAX
runs on the CPU: same model, same batch, same number of threads, in the same process, one step of
each in turn. A step is the whole of it: forward, backward and AdamW; ours also carries the uint8
batch to the device and normalises it, while the peer is given normalised floats, for nothing.
"""

import argparse
import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from measure import hardware, held_bytes, interleaved, num_cores, others_cpu_share, versions

from mae_jax.models.mae import MAE
from mae_jax.models.vit import VARIANTS, architecture
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.training import mesh as mesh_lib
from mae_jax.training.optimizer import make_optimizer, make_schedule
from mae_jax.training.state import create_state, jit_step, make_step

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEARNING_RATE, WEIGHT_DECAY, B1, B2, EPS = 1e-4, 0.05, 0.9, 0.95, 1e-8


class Contender(NamedTuple):
    """Something to be timed."""

    name: str
    run: Callable[[], float]
    """One step, finished when it returns; gives the loss."""
    compile_s: float | None = None
    memory_gib: float | None = None
    flops_per_image: float | None = None
    """The compiler's own count: every operation, the optimiser's too."""


def make_task(variant: str, image_size: int, dtype: str, **model) -> Pretrain:
    """The paper's pretraining of a variant; `model` are further fields of `MAE`."""
    module = MAE(**architecture(variant) | {'dtype': jnp.dtype(dtype)} | model)
    return Pretrain(module, (image_size, image_size), MEAN, STD)


def ours(task: Pretrain, images: np.ndarray) -> Contender:
    """The jitted step of the training loop over all devices, on uint8 [B, H, W, C]."""
    mesh = mesh_lib.make_mesh()
    schedule = make_schedule(peak=LEARNING_RATE, total_steps=1000)
    optimizer = make_optimizer('adamw', schedule, b1=B1, b2=B2, eps=EPS, weight_decay=WEIGHT_DECAY)
    state = create_state(task, optimizer, mesh, seed=0)
    batch_size = len(images)

    def put() -> dict[str, jax.Array]:
        return mesh_lib.put_batch(mesh, {'image': images})

    start = time.perf_counter()
    step = jit_step(make_step(task, optimizer, seed=0), mesh, state).lower(state, put()).compile()
    compile_s = time.perf_counter() - start

    def run() -> float:
        nonlocal state
        state, metrics = step(state, put())
        return float(jax.block_until_ready((state, metrics))[1]['loss'])

    # Both are counted for one device.
    flops = step.cost_analysis()['flops'] * mesh.size / batch_size
    return Contender('mae_jax', run, compile_s, held_bytes(step) / 2**30, flops)


def hugging_face(task: Pretrain, images: np.ndarray, attention: str) -> Contender:
    """Hugging Face's ViTMAE, eager, on the CPU; in bfloat16 the forward pass is under autocast."""
    import torch
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    torch.set_num_threads(num_cores())
    model = task.model
    peer = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=model.width,
            num_hidden_layers=model.depth,
            num_attention_heads=model.heads,
            intermediate_size=4 * model.width,
            decoder_hidden_size=model.decoder_width,
            decoder_num_hidden_layers=model.decoder_depth,
            decoder_num_attention_heads=model.decoder_heads,
            decoder_intermediate_size=4 * model.decoder_width,
            image_size=task.image_size[0],
            patch_size=model.patch_size,
            mask_ratio=model.mask_ratio,
            norm_pix_loss=True,
            layer_norm_eps=1e-6,
            attn_implementation=attention,
        )
    ).train()
    trained = [p for p in peer.parameters() if p.requires_grad]
    groups = [
        {'params': [p for p in trained if p.ndim > 1], 'weight_decay': WEIGHT_DECAY},
        {'params': [p for p in trained if p.ndim <= 1], 'weight_decay': 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(B1, B2), eps=EPS)
    pixels = ((images / 255 - MEAN) / STD).astype(np.float32).transpose(0, 3, 1, 2)
    pixels = torch.from_numpy(np.ascontiguousarray(pixels))
    autocast = torch.autocast('cpu', torch.bfloat16, enabled=model.dtype == jnp.bfloat16)

    def run() -> float:
        with autocast:
            loss = peer(pixels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return Contender(f'Hugging Face, PyTorch eager, attention {attention!r}', run)


def matmul(dtype: str, size: int) -> tuple[Callable[[], None], float]:
    """A square product with float32 sums on the first device, and its floating-point operations."""
    a = jnp.full((size, size), 0.5, dtype)
    product = jax.jit(lambda a: jnp.dot(a, a, preferred_element_type=jnp.float32))
    return lambda: jax.block_until_ready(product(a)), 2 * size**3


def has_peer() -> bool:
    installed = importlib.util.find_spec('torch') and importlib.util.find_spec('transformers')
    return bool(installed) and jax.default_backend() == 'cpu'


def report(task: Pretrain, contenders: Sequence[Contender], batch_size: int, repeats: int) -> str:
    """Measures, and puts what was measured into Markdown."""
    product, product_flops = matmul(jnp.dtype(task.model.dtype).name, 2048)
    runs = [contender.run for contender in contenders] + [product]
    others = others_cpu_share()
    *steps, products = interleaved(runs, repeats, unmeasured=1)
    others = others()
    peak, lowest, highest = (
        product_flops * jax.device_count() / f(products) / 1e9 for f in (np.median, np.max, np.min)
    )
    flops = task.flops_per_image()
    lines = [
        '| step | images/s | slowest - fastest | mae_jax over this | share of matmul rate '
        '| compile, s | memory, GiB |',
        '|---|---|---|---|---|---|---|',
    ]
    for contender, seconds in zip(contenders, steps, strict=True):
        rate, slowest, fastest = (batch_size / f(seconds) for f in (np.median, np.max, np.min))
        ratio = np.median(seconds) / np.median(steps[0])
        cells = [
            contender.name,
            f'{rate:.3g}',
            f'{slowest:.3g} - {fastest:.3g}',
            f'{ratio:.2f}',
            f'{rate * flops / peak / 1e9:.0%}',
            '' if contender.compile_s is None else f'{contender.compile_s:.0f}',
            '' if contender.memory_gib is None else f'{contender.memory_gib:.2f}',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    counted = contenders[0].flops_per_image
    return '\n'.join(
        [
            f'- {hardware()}',
            f'- {versions()}',
            f'- {flops / 1e9:.1f} GFLOP an image in matrix products, forward and backward; XLA '
            f'counts {counted / 1e9:.1f} in the whole step',
            f'- matmul rate: {peak:.0f} GFLOP/s ({lowest:.0f} - {highest:.0f}), a jitted product '
            'of 2048 x 2048 matrices',
            f'- medians of {repeats} interleaved repeats'
            + ('' if others is None else f'; other processes took {others:.0%} of the machine'),
            '',
            *lines,
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--variant', default='vit_base', choices=VARIANTS)
    parser.add_argument('--batch_size', type=int, default=8)
    parser.add_argument('--image_size', type=int, default=224)
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'])
    parser.add_argument('--repeats', type=int, default=10)
    parser.add_argument('--attention', nargs='*', default=['sdpa', 'eager'], help="the peer's")
    args = parser.parse_args(argv)

    shape = (args.batch_size, args.image_size, args.image_size, 3)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    task = make_task(args.variant, args.image_size, args.dtype)
    contenders = [ours(task, images)]
    if has_peer():
        contenders += [hugging_face(task, images, attention) for attention in args.attention]
    print(f'{args.variant}, batch {args.batch_size}, {args.image_size} px, {args.dtype}\n')
    print(report(task, contenders, args.batch_size, args.repeats))


if __name__ == '__main__':
    main()
