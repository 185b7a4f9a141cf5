"""Measures how the cost of a pretraining step grows with mask ratio, image size and depth.

    python benchmarks/scaling.py --variant=vit_base --batch_size=4 --repeats=3

Prints a Markdown table: images/s while one factor changes and the others keep the paper's values,
and the exponent of each growth, fitted by least squares between logarithms, with that of the
floating-point operations. The exponent of the mask ratio is over the share of visible patches. A
step includes the optimiser, and runs on uint8 images on the device; all steps are timed
alternately in one process.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from measure import circumstances, interleaved, markdown, others_cpu_share, rates
from train_step import PRETRAIN, make_batch, make_task, make_tx

from mae_jax.models.vit import VARIANTS, architecture
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.training import sharding as mesh_lib
from mae_jax.training.state import abstract_state, jit_step, make_step

MASK_RATIOS = (0.0, 0.5, 0.75, 0.9)
IMAGE_SIZES = (96, 160, 224, 320, 448)
DEPTHS = (3, 6, 12, 24)


class Point(NamedTuple):
    """Describes a step of the sweep, and the value of the factor that changes."""

    factor: str
    label: str
    amount: float
    """The quantity over which the exponent is fitted."""
    task: Pretrain


def sweep(
    variant: str,
    dtype: str,
    *,
    image_size: int = 224,
    mask_ratios: Sequence[float] = MASK_RATIOS,
    image_sizes: Sequence[int] = IMAGE_SIZES,
    depths: Sequence[int] = DEPTHS,
    **model,
) -> list[Point]:
    """Makes the points, factor by factor; points of equal settings have equal tasks."""
    points = []
    patch_size = architecture(variant, patch_size=model.get('patch_size'))['patch_size']
    for ratio in mask_ratios:
        # If nothing is hidden, the loss must cover all patches.
        loss_on = 'hidden' if ratio else 'all'
        task = make_task(variant, image_size, dtype, mask_ratio=ratio, loss_on=loss_on, **model)
        visible = task.model.masking.num_kept(task.num_patches) / task.num_patches
        points.append(Point('mask ratio', f'{ratio:g}', visible, task))
    for size in image_sizes:
        size -= size % patch_size  # ViT-H's patches have 14 pixels
        points.append(
            Point('image size', f'{size}', size, make_task(variant, size, dtype, **model))
        )
    for depth in depths:
        task = make_task(variant, image_size, dtype, **model | {'depth': depth})
        points.append(Point('depth', f'{depth}', depth, task))
    return points


class Arrays:
    """Holds the arrays of all steps, by path in the state and shape, shared between steps.

    A state for every step would not fit into memory. The results of a step replace its arguments.
    """

    def __init__(self):
        self._arrays: dict[tuple, jax.Array] = {}
        self._rng = np.random.default_rng(0)

    def state(self, like: Any) -> Any:
        """Returns a state of these shapes; new parameters are small random numbers."""
        return jax.tree.map_with_path(self._get, like)

    def put(self, state: Any) -> None:
        """Stores the arrays of a state."""
        for path, array in jax.tree_util.tree_leaves_with_path(state):
            self._arrays[jax.tree_util.keystr(path), array.shape] = array

    def _get(self, path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        key = jax.tree_util.keystr(path), leaf.shape
        if key not in self._arrays:
            value = np.zeros(leaf.shape, leaf.dtype)
            if key[0].startswith('.params'):
                value = 0.02 * self._rng.standard_normal(leaf.shape, leaf.dtype)
            self._arrays[key] = jax.device_put(value, leaf.sharding)
        return self._arrays[key]


def runner(task: Pretrain, arrays: Arrays, batch_size: int, steps: int) -> Callable[[], float]:
    """Compiles a step over all devices; returns a function that runs `steps` and gives the loss."""
    mesh, tx = mesh_lib.make_mesh(), make_tx(task, PRETRAIN)
    like = abstract_state(task, tx, mesh)
    batch = mesh_lib.put_batch(mesh, make_batch(task, batch_size))
    step = jit_step(make_step(task, tx, seed=0), mesh, like).lower(like, batch).compile()

    def run() -> float:
        state = arrays.state(like)
        for _ in range(steps):
            state, metrics = step(state, batch)
        arrays.put(state)
        return float(jax.block_until_ready((state, metrics))[1]['loss'])

    return run


def exponent(amounts: Sequence[float], costs: Sequence[float]) -> float:
    """Fits the power law cost = c * amount ** p to the logarithms, and returns p."""
    return np.polyfit(np.log(amounts), np.log(costs), 1)[0]


def table(
    points: Sequence[Point], seconds: Sequence[np.ndarray], images: int
) -> tuple[list[str], list[list[str]]]:
    """Makes head and rows; `seconds` has the repeats of each point, each of `images` images."""
    head = ['factor', 'value', 'grows over', 'images/s per device', 'slowest - fastest']
    head += ['GFLOP/image', 'GFLOP/s', 'exponent of time', 'of FLOPs']
    rows = []
    for point, times in zip(points, seconds, strict=True):
        series = [(p, s) for p, s in zip(points, seconds, strict=True) if p.factor == point.factor]
        amounts = [p.amount for p, _ in series]
        medians = [np.median(s) for _, s in series]
        flops = point.task.flops_per_image()
        fits = (
            exponent(amounts, medians),
            exponent(amounts, [p.task.flops_per_image() for p, _ in series]),
        )
        rows.append(
            [
                point.factor,
                point.label,
                f'{point.amount:.3g}',
                *rates(images, times),
                f'{flops / 1e9:.3g}',
                f'{flops * images / np.median(times) / 1e9:.3g}',
                *(f'{fit:.2f}' for fit in fits),
            ]
        )
    return head, rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--variant', default='vit_base', choices=VARIANTS)
    parser.add_argument('--batch_size', type=int, default=4, help='images per device')
    parser.add_argument('--image_size', type=int, default=224, help='of the other factors')
    parser.add_argument('--image_sizes', type=int, nargs='*', default=IMAGE_SIZES)
    parser.add_argument('--mask_ratios', type=float, nargs='*', default=MASK_RATIOS)
    parser.add_argument('--depths', type=int, nargs='*', default=DEPTHS)
    parser.add_argument('--dtype', default='float32', choices=['float32', 'bfloat16'])
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument(
        '--steps', type=int, help='steps of a repeat; default: 1 on a CPU, 10 elsewhere'
    )
    args = parser.parse_args(argv)

    steps = args.steps or (1 if jax.default_backend() == 'cpu' else 10)
    points = sweep(
        args.variant,
        args.dtype,
        image_size=args.image_size,
        mask_ratios=args.mask_ratios,
        image_sizes=args.image_sizes,
        depths=args.depths,
    )
    arrays, runs = Arrays(), {}
    for point in points:
        if point.task not in runs:
            print(f'compiling: {point.factor} {point.label}', file=sys.stderr, flush=True)
            batch_size = args.batch_size * jax.device_count()
            runs[point.task] = runner(point.task, arrays, batch_size, steps)
    others = others_cpu_share()
    measured = interleaved(list(runs.values()), args.repeats)
    notes = circumstances(args.repeats, others())
    seconds = dict(zip(runs, measured, strict=True))
    head, rows = table(points, [seconds[p.task] for p in points], args.batch_size * steps)
    print(
        f'{args.variant} pretraining, batch {args.batch_size}, {args.dtype}, around '
        f'{args.image_size} px and the mask ratio and depth of the paper\n'
    )
    print(markdown(notes, head, rows))


if __name__ == '__main__':
    main()
