"""What a person sees of a run: console, metrics.jsonl, TensorBoard, pictures; speed and ETA."""

from collections.abc import Callable
from typing import Any

import jax


def format_line(step: int, total_steps: int, epoch: float, scalars: dict[str, float]) -> str:
    """One console line; what is not among the scalars is left out."""
    parts = [f'step {step:>{len(str(total_steps))}}/{total_steps}', f'epoch {epoch:.1f}']
    shown = {
        'loss': ('loss', '.4f'),
        'eval/loss': ('held-out loss', '.4f'),
        'eval/top1': ('top-1', '.4f'),
        'eval/top5': ('top-5', '.4f'),
        'probe/knn': ('k-NN', '.4f'),
        'probe/linear': ('linear probe', '.4f'),
        'learning_rate': ('lr', '.2e'),
        'grad_norm': ('grad', '.2f'),
    }
    for name, (label, spec) in shown.items():
        if name in scalars:
            parts.append(f'{label} {scalars[name]:{spec}}')
    if 'images_per_second' in scalars:
        per_device = scalars['images_per_second_per_device']
        parts.append(f'{scalars["images_per_second"]:,.0f} img/s ({per_device:,.0f}/device)')
        parts.append(f'wait {scalars["input_wait"]:.0%}')
    if 'mfu' in scalars:
        parts.append(f'mfu {scalars["mfu"]:.0%}')
    if scalars.get('skipped_steps'):
        parts.append(f'skipped {scalars["skipped_steps"]:.0f}')
    if scalars.get('replaced_images'):
        parts.append(f'replaced {scalars["replaced_images"]:.0f}')
    if 'eta_seconds' in scalars:
        parts.append(f'eta {format_seconds(scalars["eta_seconds"])}')
    return '  '.join(parts)


def format_seconds(seconds: float) -> str:
    """42s, 3m05s, 7h12m, 3d04h."""
    seconds = round(seconds)
    for unit, name, below, below_name in ((86400, 'd', 3600, 'h'), (3600, 'h', 60, 'm')):
        if seconds >= unit:
            return f'{seconds // unit}{name}{seconds % unit // below:02d}{below_name}'
    return f'{seconds // 60}m{seconds % 60:02d}s' if seconds >= 60 else f'{seconds}s'


def parameter_table(params: Any, is_trained: Callable[[str], bool]) -> str:
    """Name, shape and size of every parameter; the blocks, which are alike, in one row each."""
    rows: dict[tuple, list[int]] = {}
    total = trained = 0
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        fixed = '' if is_trained('/'.join(names)) else 'fixed'
        total += value.size
        trained += 0 if fixed else value.size
        alike = ['block_*' if name.startswith('block_') else name for name in names]
        rows.setdefault(('/'.join(alike), str(value.shape), fixed), []).append(value.size)
    lines = [
        f'{name:<44} {shape:<16} {len(sizes):>3} x {sizes[0]:>12,}  {fixed}'.rstrip()
        for (name, shape, fixed), sizes in rows.items()
    ]
    return '\n'.join([*lines, f'{total:,} parameters, {trained:,} of them trained'])
