"""Formats what the console shows of a run: log lines, durations, the table of parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from clu.parameter_overview import make_table

LABELS = {
    'loss': ('loss', '.4f'),
    'eval/loss': ('held-out loss', '.4f'),
    'eval/top1': ('top-1', '.4f'),
    'eval/top5': ('top-5', '.4f'),
    'eval/miou': ('mIoU', '.4f'),
    'eval/pixel_accuracy': ('pixel accuracy', '.4f'),
    'eval/box_ap': ('box AP', '.4f'),
    'eval/mask_ap': ('mask AP', '.4f'),
    'probe/knn': ('k-NN', '.4f'),
    'probe/linear': ('linear probe', '.4f'),
    'learning_rate': ('lr', '.2e'),
    'grad_norm': ('grad', '.2f'),
}
"""Scalars in the order of the line, with their labels and formats."""


DETAILS = tuple(
    f'eval/{kind}_ap{which}'
    for kind in ('box', 'mask')
    for which in ('_small', '_medium', '_large', '75', '50')
)
OPTIONAL = (*DETAILS, 'grad_norm', 'per_device', 'epoch', 'learning_rate', 'input_wait', 'mfu')
"""What a narrow line leaves out, in this order; all of it is in metrics.jsonl."""


def format_line(
    step: int, total_steps: int, epoch: float, scalars: dict[str, float], width: int = 80
) -> str:
    """Formats one log line; scalars that are not given are left out.

    Args:
      width: columns that the line may take; what is `OPTIONAL` is left out where they are too few.
    """
    fields = {
        'step': f'step {step:>{len(str(total_steps))}}/{total_steps}',
        'epoch': f'epoch {epoch:.1f}',
    }
    others = [n for n in scalars if n.startswith('eval/') and n not in LABELS]  # a user's task
    for name, (label, spec) in (LABELS | {n: (n, '.4f') for n in others}).items():
        if name in scalars:
            fields[name] = f'{label} {scalars[name]:{spec}}'
    if 'images_per_second' in scalars:
        images, per_device = (scalars[f'images_per_second{of}'] for of in ('', '_per_device'))
        fields['speed'] = f'{images:,.0f} img/s'
        if per_device != images:
            fields['per_device'] = f'({per_device:,.0f}/device)'
        fields['input_wait'] = f'wait {scalars["input_wait"]:.0%}'
    if 'mfu' in scalars:
        fields['mfu'] = f'mfu {scalars["mfu"]:.0%}'
    for name, label in (('skipped_steps', 'skipped'), ('replaced_images', 'replaced')):
        if scalars.get(name):
            fields[name] = f'{label} {scalars[name]:.0f}'
    if 'eta_seconds' in scalars:
        fields['eta'] = f'eta {format_seconds(scalars["eta_seconds"])}'
    for name in OPTIONAL:
        if len('  '.join(fields.values())) > width:
            fields.pop(name, None)
    return '  '.join(fields.values())


def format_seconds(seconds: float) -> str:
    """Formats a duration as 42s, 3m05s, 7h12m or 3d04h."""
    seconds = round(seconds)
    for unit, name, below, below_name in ((86400, 'd', 3600, 'h'), (3600, 'h', 60, 'm')):
        if seconds >= unit:
            return f'{seconds // unit}{name}{seconds % unit // below:02d}{below_name}'
    return f'{seconds // 60}m{seconds % 60:02d}s' if seconds >= 60 else f'{seconds}s'


@dataclasses.dataclass
class Row:
    """A row of the table: one parameter, or the parameters of equal blocks."""

    name: str
    shape: str
    size: int
    blocks: int
    trained: str


def parameter_table(params: Any, is_trained: Callable[[str], bool]) -> str:
    """Tabulates name, shape and size of every parameter; equal blocks share one row each.

    Args:
      params: nested dictionaries of arrays.
      is_trained: whether the parameter of a name is trained.
    """
    rows: dict[tuple, Row] = {}
    total = trained = 0
    for path, value in jax.tree_util.tree_leaves_with_path(params):
        names = [key.key for key in path]
        learns = is_trained('/'.join(names))
        total += value.size
        trained += value.size if learns else 0
        name = '/'.join('block_*' if n.startswith('block_') else n for n in names)
        shape = 'x'.join(map(str, value.shape)) or '1'
        row = rows.setdefault(
            (name, shape, learns), Row(name, shape, value.size, 0, '' if learns else 'fixed')
        )
        row.blocks += 1
    return f'{make_table(list(rows.values()))}\n{total:,} parameters, {trained:,} of them trained'
