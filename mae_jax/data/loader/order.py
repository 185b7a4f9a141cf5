"""The order of the training examples, and which of them a process loads.

The images of all steps form one endless sequence: epoch after epoch, each a new permutation of the
examples. Image i of step s is at position `s * batch_images + i`, whichever process, worker or
thread loads it, so that a run can resume at any step with any number of each.
"""

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from mae_jax.errors import UserError


def epochs(num_examples: int, seed: int) -> grain.MapDataset:
    """Returns the endless sequence of shuffled epochs: `epochs(n, seed)[position]` is an index.

    The seed goes through `MapDataset.seed`, which hashes it. With a seed given to `shuffle` or to
    grain's `IndexSampler`, epoch 1 of a seed would be the same as epoch 0 of the next seed.
    """
    return grain.MapDataset.range(num_examples).seed(seed).shuffle().repeat()


@dataclasses.dataclass(frozen=True, eq=False)
class Share:
    """The images of every global batch that one process loads.

    Attributes:
      numbers: int [n], their numbers within a global batch, each below `batch_images`.
      batch_images: how many images a global batch has.
    """

    numbers: np.ndarray
    batch_images: int

    def __len__(self) -> int:
        return len(self.numbers)

    def position(self, count: int) -> int:
        """Returns where in the sequence of all images the image is that this process loads next.

        Args:
          count: how many images the process has loaded before it, from step 0 on.
        """
        step, index = divmod(count, len(self.numbers))
        return step * self.batch_images + int(self.numbers[index])


def share_of_rows(rows: Sequence[int], batch_size: int, repeats: int) -> Share:
    """Returns the images that have these rows of a global batch.

    Args:
      rows: int [b], rows of the global batch.
      batch_size: rows of a global batch.
      repeats: rows of each image, which are consecutive.

    Raises:
      UserError: `repeats` does not divide the batch size, or `rows` has only some rows of an image.
    """
    rows = np.asarray(rows)
    if repeats < 1 or batch_size % repeats:
        raise UserError(
            f'dataset.repeats={repeats} does not divide batch_size={batch_size}: choose one of its '
            'divisors.'
        )
    numbers = rows[::repeats] // repeats
    if not np.array_equal(rows, (numbers[:, None] * repeats + np.arange(repeats)).ravel()):
        raise UserError(
            f'dataset.repeats={repeats} rows of an image would be on several devices: choose a '
            'multiple of dataset.repeats times the number of devices as batch_size.'
        )
    return Share(numbers, batch_size // repeats)
