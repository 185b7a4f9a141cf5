"""Data sets as random-access sources.

A source has `len(source)`, `source[i] -> {'image': encoded bytes or array [H,W,C], 'label': int
(-1: none), 'name': str}`, and the attributes `num_classes` (0: unlabelled), `class_names` and
`identity`, a short text that another data set, split or order would not have. It can be pickled.
"""

from collections.abc import Collection

from mae_jax.errors import UserError

EVAL_SPLITS = ('validation', 'val', 'test')


def existing_split(name: str, split: str, splits: Collection[str]) -> str:
    """The split of this name, or what evaluation is called there; a UserError if there is none."""
    if split in EVAL_SPLITS and split not in splits:
        split = next((other for other in EVAL_SPLITS if other in splits), split)
    if split not in splits:
        raise UserError(f'{name} has no split {split!r}; it has {", ".join(splits)}.')
    return split
