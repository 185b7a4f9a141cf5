"""Measures the savings from an encoder without mask tokens (Tables 1c and 2 of the paper).

    python benchmarks/masking_speedup.py --variants vit_large vit_huge --flops_only
    python benchmarks/masking_speedup.py --variants vit_large --batch_size=4 --repeats=3 --clock=cpu

Prints a Markdown table. `--flops_only` runs no step and needs little memory. A step is the forward
and backward pass over normalised images: the loss and its gradient with respect to all parameters.
The optimiser is excluded, because its cost depends neither on the masking nor on the batch. Steps
are timed on one device in one process, which alternates between the rows.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from measure import hardware, held_bytes, interleaved, others_cpu_share, versions
from train_step import make_task

from mae_jax.models.vit import VARIANTS
from mae_jax.tasks.pretrain import Pretrain

ROWS = ((True, 8), (False, 8), (False, 1))
"""(whether the encoder has mask tokens, number of decoder blocks) of each row."""
PAPER_FLOPS = {('vit_large', False, 8): 3.3}
"""Reduction factor of the floating-point operations relative to mask tokens (Table 1c)."""
PAPER_HOURS = {
    'vit_large': dict(zip(ROWS, (42.4, 15.4, 11.6), strict=True)),
    'vit_huge': dict(zip(ROWS, (119.6, 34.5, 29.3), strict=True)),
}
"""Of 800 epochs on 128 TPU v3 cores (Table 2); the paper estimates 119.6 from ten epochs."""
CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}


class Row(NamedTuple):
    """Describes a way to pretrain a variant, and its cost."""

    variant: str
    mask_tokens: bool
    decoder_depth: int
    xla_flops: float
    """Floating-point operations of a step per image, counted by XLA."""
    product_flops: float
    """Operations of its matrix products per image, by `Pretrain.flops_per_image`."""
    held_bytes: int | None = None
    """Memory of a step by XLA's analysis; None if it was not compiled."""
    seconds: np.ndarray | None = None
    """Time of each repeat of a step; None if it was not run."""


def make_row_task(
    variant: str,
    mask_tokens: bool,
    decoder_depth: int,
    *,
    image_size: int,
    dtype: str,
    **model: Any,
) -> Pretrain:
    """Makes the task of a row; its target is that of the ablations, unnormalised pixels."""
    fields = dict(encoder_mask_tokens=mask_tokens, decoder_depth=decoder_depth, target='pixel')
    return make_task(variant, image_size, dtype, **fields | model)


def lowered(task: Pretrain, batch_size: int) -> jax.stages.Lowered:
    """Lowers a step, (params, batch) -> (loss, gradient), from shapes: no array is allocated."""

    def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        return task.loss(params, {}, batch, jax.random.key(0))[0]

    params, _ = jax.eval_shape(task.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((batch_size, *task.image_size, len(task.mean)), jnp.float32)
    noise = jax.ShapeDtypeStruct((batch_size, task.num_patches), jnp.float32)
    step = jax.jit(jax.value_and_grad(loss))
    return step.lower(params, {'image': images, 'noise': noise})


def xla_flops(task: Pretrain) -> float:
    """Returns XLA's count for one image before optimisation: every operation, not only products.

    Counts the program for CPUs, since other backends count only compiled programs, and count the
    products of a library as 0. The body of a loop would be counted once.
    """
    assert not task.model.scan, 'the body of a loop would be counted once'
    with jax.default_device(jax.devices('cpu')[0]):
        return lowered(task, 1).cost_analysis()['flops']


def count(variant: str, **options) -> list[Row]:
    """Returns the rows of a variant with their operations."""
    rows = []
    for mask_tokens, depth in ROWS:
        task = make_row_task(variant, mask_tokens, depth, **options)
        rows.append(Row(variant, mask_tokens, depth, xla_flops(task), task.flops_per_image()))
    return rows


def free_bytes() -> int | None:
    """Returns the free memory of the first device, or of the machine on a CPU; None if unknown."""
    device = jax.devices()[0]
    if device.platform == 'cpu':
        meminfo = Path('/proc/meminfo')
        lines = meminfo.read_text().splitlines() if meminfo.exists() else []
        return next((int(n.split()[1]) * 1024 for n in lines if n.startswith('MemAvail')), None)
    stats = device.memory_stats() or {}
    return stats['bytes_limit'] - stats['bytes_in_use'] if 'bytes_limit' in stats else None


def runners(steps: Sequence[jax.stages.Compiled]) -> list[Callable[[], Any]]:
    """Makes functions that run each step on small random numbers, with arrays shared by all."""
    rng, arrays = np.random.default_rng(0), {}

    def array(path, leaf) -> jax.Array:
        key = jax.tree_util.keystr(path), leaf.shape
        if key not in arrays:
            arrays[key] = jnp.asarray(0.02 * rng.standard_normal(leaf.shape, np.float32))
        return arrays[key]

    def runner(step: jax.stages.Compiled) -> Callable[[], Any]:
        arguments, _ = jax.tree_util.tree_map_with_path(array, step.args_info)
        return lambda: jax.block_until_ready(step(*arguments))

    return [runner(step) for step in steps]


def measure(
    rows: Sequence[Row], batch_size: int, repeats: int, clock: str, **options
) -> tuple[list[Row], str]:
    """Adds memory to the rows of a variant, and times if the device has enough free memory.

    Returns:
      The rows, and a sentence that states how they were measured, or why they were not.
    """
    steps = []
    for row in rows:
        task = make_row_task(row.variant, row.mask_tokens, row.decoder_depth, **options)
        steps.append(lowered(task, batch_size).compile())
    held = [held_bytes(step) for step in steps]
    rows = [row._replace(held_bytes=n) for row, n in zip(rows, held, strict=True)]
    # The rows share their weights, and one step runs at a time.
    needed, free = 1.1 * max(held), free_bytes()
    if free is not None and needed > free:
        return rows, (
            f'{rows[0].variant} was not run: it needs {needed / 2**30:.1f} GiB and '
            f'{free / 2**30:.1f} are free; take a smaller --batch_size'
        )

    runs = runners(steps)
    others = others_cpu_share()
    seconds = interleaved(runs, repeats, clock=CLOCKS[clock])
    others = others()
    note = f'{rows[0].variant}: batch {batch_size}, medians of {repeats} interleaved repeats'
    if clock == 'cpu':
        note += ", in seconds of this process's CPU time"
    if others is not None:
        note += f'; other processes took {others:.0%} of the machine'
    return [row._replace(seconds=s) for row, s in zip(rows, seconds, strict=True)], note


def table(rows: Sequence[Row], batch_size: int) -> str:
    """Makes a Markdown table; ratios are relative to the variant's first row, with mask tokens."""
    timed = any(row.held_bytes is not None for row in rows)
    head = ['model', 'encoder', 'decoder', 'GFLOP/image, XLA', 'products', 'fewer', 'Table 1c']
    if timed:
        head += ['images/s', 'slowest - fastest', 'faster', 'memory, GiB']
    head += ['Table 2, hours', 'Table 2']
    lines = [f'| {" | ".join(head)} |', '|---' * len(head) + '|']
    for row in rows:
        first = next(r for r in rows if r.variant == row.variant)
        key = row.mask_tokens, row.decoder_depth
        fewer = PAPER_FLOPS.get((row.variant, *key))
        hours = PAPER_HOURS.get(row.variant)
        cells = [
            row.variant,
            'w/ [M]' if row.mask_tokens else 'w/o [M]',
            f'{row.decoder_depth}',
            f'{row.xla_flops / 1e9:.1f}',
            f'{row.product_flops / 1e9:.1f}',
            f'{first.xla_flops / row.xla_flops:.2f}x',
            f'{fewer:.1f}x' if fewer else '',
        ]
        if timed:
            cells += _timed_cells(row, first, batch_size)
        if hours:
            cells += [f'{hours[key]}', f'{hours[ROWS[0]] / hours[key]:.1f}x']
        else:
            cells += ['', '']
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def _timed_cells(row: Row, first: Row, batch_size: int) -> list[str]:
    memory = '' if row.held_bytes is None else f'{row.held_bytes / 2**30:.1f}'
    if row.seconds is None:
        return ['', '', '', memory]
    rate, slowest, fastest = (batch_size / f(row.seconds) for f in (np.median, np.max, np.min))
    faster = np.median(first.seconds) / np.median(row.seconds)
    return [f'{rate:.3g}', f'{slowest:.3g} - {fastest:.3g}', f'{faster:.2f}x', memory]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--variants', nargs='+', default=['vit_large'], choices=VARIANTS)
    parser.add_argument('--batch_size', type=int, default=4)
    parser.add_argument('--image_size', type=int, default=224)
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'])
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--flops_only', action='store_true', help='count operations, run no step')
    parser.add_argument(
        '--clock', default='wall', choices=CLOCKS, help='cpu: if other processes use the machine'
    )
    args = parser.parse_args(argv)

    options = dict(image_size=args.image_size, dtype=args.dtype)
    rows, notes = [], []
    for variant in args.variants:
        counted = count(variant, **options)
        if not args.flops_only:
            counted, note = measure(counted, args.batch_size, args.repeats, args.clock, **options)
            notes.append(note)
        rows += counted
    caption = 'forward and backward pass without the optimiser'
    print(f'A step is {caption}; {args.image_size} px, {args.dtype}.\n')
    if not args.flops_only:
        notes = [hardware(), *notes]
    print('\n'.join(f'- {note}' for note in [versions(), *notes]))
    print(f'\n{table(rows, args.batch_size)}')


if __name__ == '__main__':
    main()
