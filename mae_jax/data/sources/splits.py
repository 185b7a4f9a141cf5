"""The names of splits: `validation`, `val`, `valid` and `test` stand for each other."""

from collections.abc import Collection

from mae_jax.errors import UserError

TRAIN_SPLITS = ('train', 'training')
EVAL_SPLITS = ('validation', 'val', 'valid', 'test')


def existing_split(name: str, split: str, splits: Collection[str]) -> str:
    """Returns `split` if the data set has it, else its evaluation split of another name.

    Args:
      name: of the data set, for the message.
      split: the split that is asked for; one of `EVAL_SPLITS` may be answered with another.
      splits: those that the data set has.

    Raises:
      UserError: the data set has no such split.
    """
    if split in EVAL_SPLITS and split not in splits:
        split = next((other for other in EVAL_SPLITS if other in splits), split)
    if split not in splits:
        raise UserError(f'{name} has no split {split!r}; it has {", ".join(splits)}.')
    return split
