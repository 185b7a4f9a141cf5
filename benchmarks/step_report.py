"""Times the steps that train_step.py makes, and reports them."""

import importlib.util
from collections.abc import Sequence

import jax
import numpy as np
import torch_peers
from measure import (
    Contender,
    both_clocks,
    circumstances,
    interleaved,
    matmul,
    matmul_size,
    others_cpu_share,
    rates,
)


def report(
    contenders: Sequence[Contender], batch_size: int, repeats: int, flops: float, steps: int = 1
) -> tuple[list[str], list[str], list[list[str]]]:
    """Times the contenders.

    Args:
      contenders: each run takes `steps` steps of `batch_size` images per device.
      batch_size: images per device.
      repeats: number of timed runs of each.
      flops: operations of matrix products per image.
      steps: steps of a run.

    Returns:
      Notes, head and rows of the table.
    """
    dtypes = list(dict.fromkeys(contender.dtype for contender in contenders))
    products = {('mae_jax', dtype): matmul(dtype)[0] for dtype in dtypes}
    if importlib.util.find_spec('torch'):
        products |= {('PyTorch', dtype): torch_peers.matmul(dtype) for dtype in dtypes}
    runs = [contender.run for contender in contenders] + list(products.values())
    others = others_cpu_share()
    seconds = interleaved(runs, repeats, unmeasured=1, clock=both_clocks)
    notes = circumstances(repeats, others())
    size, count = matmul_size()
    peaks = {}
    for product, times in zip(products, seconds[len(contenders) :, :, 0], strict=True):
        rate = 2e-9 * size**3 * count / times
        peaks[product] = np.median(rate) * 1e9
        notes.append(
            f'matmul rate, {", ".join(product)}: {np.median(rate):.0f} GFLOP/s '
            f'({rate.min():.0f} - {rate.max():.0f})'
        )
    medians = np.median(seconds[: len(contenders)], axis=1)
    notes += against_fastest(contenders, medians)
    first, rows = {}, []
    for contender, times, median in zip(contenders, seconds, medians, strict=False):
        ours = median / first.setdefault(contender.dtype, median)
        achieved = batch_size * steps / median[0] * flops
        row = [
            contender.name,
            contender.dtype,
            *rates(batch_size * steps, times[:, 0]),
            f'{ours[0]:.2f}',
            f'{flops / 1e9:.1f}',
            f'{achieved / peaks["mae_jax", contender.dtype]:.0%}',
            '' if contender.memory_gib is None else f'{contender.memory_gib:.2f}',
            '' if contender.compile_s is None else f'{contender.compile_s:.0f}',
        ]
        on_cpu = [f'{median[1] / steps:.2f}', f'{ours[1]:.2f}']
        rows.append(row + on_cpu if jax.default_backend() == 'cpu' else row)
    head = ['step', 'dtype', 'images/s per device', 'slowest - fastest', 'mae_jax over this']
    head += ['GFLOP/image', 'MFU', 'peak memory, GiB', 'compile, s']
    if jax.default_backend() == 'cpu':
        head += ['processor s/step', 'mae_jax over this by it']
    return notes, head, rows


def against_fastest(contenders: Sequence[Contender], medians: np.ndarray) -> list[str]:
    """Returns a note for each dtype: mae_jax's speed over that of the fastest peer, by each clock.

    `medians` are seconds on the wall and of the processor, [len(contenders), 2].
    """
    notes, clocks = [], ['', " by the processor's time"]
    for dtype in dict.fromkeys(contender.dtype for contender in contenders):
        mine = [c.dtype == dtype and c.name.startswith('mae_jax') for c in contenders]
        theirs = [c.dtype == dtype and not c.name.startswith('mae_jax') for c in contenders]
        if any(mine) and any(theirs):
            ratio = medians[theirs].min(axis=0) / medians[mine].min(axis=0)
            clocks = clocks[: 2 if jax.default_backend() == 'cpu' else 1]
            values = ', '.join(f'{r:.2f}{by}' for r, by in zip(ratio, clocks, strict=False))
            notes.append(f'{dtype}: mae_jax over the fastest peer {values}')
    return notes
