"""Measures the speed of the training step and of PyTorch's: Hugging Face's ViTMAE, or timm's ViT.

    python benchmarks/train_step.py --variant=vit_base --batch_size=8 --dtypes float32 bfloat16
    python benchmarks/train_step.py --task=finetune --variant=vit_base --batch_size=8

Prints a Markdown table, and for each dtype the rates of a large product in each library and the
ratio of mae_jax to the fastest peer. The peers (torch_peers.py) are measured if they are installed:
same model, same batch, same device or number of threads, on a CPU all with pages of 2 MiB,
alternately in the same process. A step includes forward and backward pass and AdamW; that of
mae_jax also transfers the uint8 batch to the device, normalises it, and for fine-tuning erases and
mixes it, which is not timed for the peers.

MFU is relative to the rate at which the same device multiplies matrices of the same dtype. Memory
is the peak of a device beyond its use before: as counted by the backend, or else by the compiler
(always on a CPU). Compilation is timed without a cache on disk: leave JAX_COMPILATION_CACHE_DIR
unset. On a CPU that other processes use too, compare the processor's time, best of one core
(`taskset -c 0 python ...`): threads that wait for each other spin, which counts as work.
"""

import argparse
import os
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch_peers
from measure import Contender, held_bytes, markdown
from step_report import report

from mae_jax.errors import brief
from mae_jax.models.attention.dispatch import ATTENTION
from mae_jax.models.classifier import Classifier
from mae_jax.models.mae import MAE
from mae_jax.models.vit import VARIANTS, architecture
from mae_jax.pretext.masking import MaskingRule
from mae_jax.pretext.targets import make_target
from mae_jax.runtime.large_pages import start_with_large_pages
from mae_jax.runtime.xla_flags import set_xla_flags
from mae_jax.tasks.classify import Classify
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.training import sharding as mesh_lib
from mae_jax.training.optimizer import decays_finetune, layer_scales, make_optimizer, make_schedule
from mae_jax.training.state import create_state, jit_step, make_step

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLASSES = 1000
PRETRAIN = dict(peak=1e-4, weight_decay=0.05, b1=0.9, b2=0.95, eps=1e-8)
FINETUNE = PRETRAIN | {'b2': 0.999}
DROP_PATH = {'vit_base': 0.1, 'vit_huge': 0.3}
"""Of fine-tuning, by the official code; other variants use that of ViT-L."""
LAYER_DECAY = {'vit_base': 0.65}


def make_task(
    variant: str,
    image_size: int,
    dtype: str,
    *,
    mask_ratio: float = 0.75,
    target: str = 'normalized_pixel',
    loss_on: str = 'hidden',
    **model,
) -> Pretrain:
    """Makes the paper's pretraining of a variant; `model` has further fields of `MAE`."""
    fields = architecture(variant) | {'dtype': jnp.dtype(dtype)} | model
    module = MAE(
        masking=MaskingRule(mask_ratio, may_hide_none=loss_on == 'all'),
        target=make_target({'name': target, 'loss_on': loss_on}),
        **fields,
    )
    return Pretrain(module, (image_size, image_size), MEAN, STD)


def make_finetuning(variant: str, image_size: int, dtype: str, **model) -> Classify:
    """Makes the paper's fine-tuning of a variant; `model` has further fields of `Classifier`."""
    fields = architecture(variant) | {'dtype': jnp.dtype(dtype), 'num_classes': CLASSES}
    fields |= {'drop_path': DROP_PATH.get(variant, 0.2)}
    return Classify(
        Classifier(**fields | model),
        (image_size, image_size),
        MEAN,
        STD,
        label_smoothing=0.1,
        mixup=0.8,
        cutmix=1.0,
        erase=0.25,
        layer_decay=LAYER_DECAY.get(variant, 0.75),
    )


def make_recipe(task: Pretrain | Classify, variant: str) -> dict:
    """Returns the arguments of the optimiser; the learning rate does not affect speed."""
    if isinstance(task, Pretrain):
        return PRETRAIN
    return FINETUNE | {'layer_decay': LAYER_DECAY.get(variant, 0.75)}


def make_tx(task: Pretrain | Classify, recipe: dict) -> optax.GradientTransformation:
    """Makes AdamW with a schedule, as a run does."""
    options = {name: recipe[name] for name in ('b1', 'b2', 'eps', 'weight_decay')}
    if 'layer_decay' in recipe:
        decay, depth = recipe['layer_decay'], task.model.depth
        options |= dict(decay_mask=decays_finetune)
        options |= dict(scales=lambda params: layer_scales(params, decay, depth))
    schedule = make_schedule(peak=recipe['peak'], total_steps=10**6)
    return make_optimizer('adamw', schedule, **options)


def make_batch(task: Pretrain | Classify, batch_size: int) -> dict[str, np.ndarray]:
    """Makes random uint8 images as loaded, and labels if the task has classes."""
    rng = np.random.default_rng(0)
    shape = (batch_size, *task.image_size, len(task.mean))
    batch = {'image': rng.integers(0, 256, shape, np.uint8)}
    if isinstance(task, Classify):
        batch |= {'label': rng.integers(0, task.model.num_classes, batch_size, np.int32)}
    return batch


def ours(
    task: Pretrain | Classify, batch: dict[str, np.ndarray], recipe: dict, steps: int = 1
) -> Contender:
    """Makes the jitted step of the training loop over all devices, on a batch as loaded."""
    mesh = mesh_lib.make_mesh()
    optimizer = make_tx(task, recipe)
    before = memory_stats()
    state = create_state(task, optimizer, mesh, seed=0)

    def put() -> dict[str, jax.Array]:
        return mesh_lib.put_batch(mesh, batch)

    start = time.perf_counter()
    step = jit_step(make_step(task, optimizer, seed=0), mesh, state).lower(state, put()).compile()
    compile_s = time.perf_counter() - start

    def run(steps: int = steps) -> float:
        nonlocal state
        for _ in range(steps):
            state, metrics = step(state, put())
        return float(jax.block_until_ready((state, metrics))[1]['loss'])

    run(2)
    memory = held_bytes(step)
    peak = memory_stats().get('peak_bytes_in_use', 0)
    if peak > before.get('peak_bytes_in_use', 0):  # otherwise the peak is another contender's
        memory = peak - before['bytes_in_use']
    dtype = jnp.dtype(task.model.dtype).name
    return Contender('mae_jax', dtype, run, compile_s, memory / 2**30)


def memory_stats() -> dict[str, int]:
    """Returns memory counts of the first device in bytes; {} if the backend has none."""
    return jax.local_devices()[0].memory_stats() or {}


def xla_flops(task: Pretrain | Classify, recipe: dict) -> float:
    """Returns XLA's count for one image of a step before optimisation, without the optimiser.

    Counts the program for CPUs: other backends count the products of a library as 0.
    """
    tx, batch = make_tx(task, recipe), make_batch(task, 2)
    step = make_step(task, tx, seed=0)

    def count(rows: int) -> float:
        selected = {name: array[:rows] for name, array in batch.items()}
        with jax.default_device(jax.local_devices(backend='cpu')[0]):
            return jax.jit(step).lower(state, selected).cost_analysis()['flops']

    state = jax.eval_shape(lambda: create_state(task, tx, mesh_lib.make_mesh(), seed=0))
    return count(2) - count(1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--task', default='pretrain', choices=['pretrain', 'finetune'])
    parser.add_argument('--variant', default='vit_base', choices=VARIANTS)
    parser.add_argument('--batch_size', type=int, default=8, help='images per device')
    parser.add_argument('--image_size', type=int, default=224)
    parser.add_argument('--dtypes', nargs='+', default=['float32'], choices=['float32', 'bfloat16'])
    parser.add_argument('--repeats', type=int, default=10)
    parser.add_argument('--steps', type=int, help='of a run; default: 1 on a CPU, 10 elsewhere')
    parser.add_argument(
        '--peers', nargs='*', choices=torch_peers.PEERS, help='default: all that are installed'
    )
    parser.add_argument('--remat', default='none', choices=['none', 'block', 'dots'])
    parser.add_argument(
        '--attention', nargs='+', default=['auto'], choices=ATTENTION, help='of mae_jax'
    )
    parser.add_argument('--depth', type=int, help="of encoder and decoder; unset: the variant's")
    args = parser.parse_args(argv)

    os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # the peers need memory too
    set_xla_flags()
    steps = args.steps or (1 if jax.default_backend() == 'cpu' else 10)
    peers = torch_peers.available(args.task) if args.peers is None else args.peers
    make = make_task if args.task == 'pretrain' else make_finetuning
    contenders, refused = [], []
    for dtype in args.dtypes:
        for attention in args.attention:
            fields = {'remat': args.remat, 'attention': attention}
            if args.depth:
                fields |= {'depth': args.depth}
                fields |= {'decoder_depth': args.depth} if args.task == 'pretrain' else {}
            task = make(args.variant, args.image_size, dtype, **fields)
            recipe = make_recipe(task, args.variant)
            batch = make_batch(task, args.batch_size * jax.device_count())
            name = 'mae_jax' if len(args.attention) == 1 else f'mae_jax, {attention} attention'
            try:
                contenders.append(ours(task, batch, recipe, steps)._replace(name=name))
            except NotImplementedError as error:  # lengths or dtypes that a kernel lacks
                refused.append(f'{name}, {dtype}: not measured ({brief(error)})')
        batch = make_batch(task, args.batch_size)
        contenders += [torch_peers.peer(task, batch, name, recipe, steps) for name in peers]
    flops = task.flops_per_image()
    notes, head, rows = report(contenders, args.batch_size, args.repeats, flops, steps)
    notes.append(
        f'{flops / 1e9:.1f} GFLOP an image in matrix products, forward and backward, by formula; '
        f'{xla_flops(task, recipe) / 1e9:.1f} in all by XLA'
    )
    notes += refused
    if not peers:
        notes.append('no peer was measured')
    print(f'{args.variant} {args.task}, batch {args.batch_size}, {args.image_size} px\n')
    print(markdown(notes, head, rows))


if __name__ == '__main__':
    start_with_large_pages()
    main()
