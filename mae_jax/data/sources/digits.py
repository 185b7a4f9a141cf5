"""scikit-learn's handwritten digits: a data set that needs no download."""

import numpy as np

from mae_jax.data.sources.arrays import ArraySource
from mae_jax.data.sources.splits import EVAL_SPLITS
from mae_jax.errors import UserError


def digits_source(split: str, **unused) -> ArraySource:
    """Returns scikit-learn's 1,797 digits, uint8 [8, 8, 1]: four fifths of them are for training.

    The split is by a fixed random permutation.

    Args:
      split: 'train', or 'validation', 'val' or 'test' for the last fifth.
      unused: what `make_source` passes to every factory.

    Raises:
      UserError: the split is another one.
    """
    from sklearn.datasets import load_digits  # takes a second to import

    if split not in ('train', *EVAL_SPLITS):
        raise UserError(f'digits has no split {split!r}; it has train and validation.')
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    cut = len(order) * 4 // 5
    order = order[:cut] if split == 'train' else order[cut:]
    images = np.rint(digits.images[order, :, :, None] * (255 / 16)).astype(np.uint8)
    names = [str(digit) for digit in range(10)]
    return ArraySource(images, digits.target[order], names, f'digits/{split}')
