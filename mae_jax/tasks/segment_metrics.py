"""Metrics of a segmenter over the pixels of the held-out images, by class."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics
from jaxtyping import Array, Bool, Int, Int32

from mae_jax.errors import UserError


def count_pixels(
    predicted: Int[Array, 'B H W'],
    labels: Int[Array, 'B H W'],
    counted: Bool[Array, 'B H W'],
    classes: int,
) -> dict[str, Int32[Array, ' {classes}']]:
    """Counts the pixels of each class, of those that are `counted`.

    Returns:
      'hits' (predicted and labelled so), 'predicted' and 'labelled'.
    """

    def of_each_class(values: Array, counted: Array) -> Array:
        is_class = values[..., None] == jnp.arange(classes)
        return (is_class & counted[..., None]).sum(axis=(0, 1, 2), dtype=jnp.int32)

    return {
        'hits': of_each_class(labels, counted & (predicted == labels)),
        'predicted': of_each_class(predicted, counted),
        'labelled': of_each_class(labels, counted),
    }


@flax.struct.dataclass
class Pixels(metrics.Metric):
    """Pixels of each class: predicted rightly, predicted, labelled; integers [classes].

    As in mmsegmentation, they are summed over all images before anything is divided, and a class
    occurs if a pixel is labelled or predicted so.
    """

    hits: jax.Array | np.ndarray
    predicted: jax.Array | np.ndarray
    count: jax.Array | np.ndarray
    """Labelled pixels."""

    @classmethod
    def from_model_output(
        cls, hits: Array, predicted: Array, labelled: Array, **_: Any
    ) -> 'Pixels':
        return cls(hits, predicted, labelled)

    def merge(self, other: 'Pixels') -> 'Pixels':
        return jax.tree.map(lambda a, b: a + b, self, other)

    def iou(self) -> np.ndarray:
        """Returns the intersection over union of each class; NaN where it does not occur."""
        union = self.predicted + self.count - self.hits
        return np.where(union > 0, self.hits / np.maximum(union, 1), np.nan)


@flax.struct.dataclass
class MeanIoU(Pixels):
    """The mean over the classes that occur."""

    def compute(self) -> Any:
        return np.nanmean(self.iou())


@flax.struct.dataclass
class PixelAccuracy(Pixels):
    """The share of labelled pixels whose class is predicted."""

    def compute(self) -> Any:
        return self.hits.sum() / self.count.sum()


@flax.struct.dataclass
class IoUPerClass(Pixels):
    """The intersection over union of every class."""

    title = 'IoU'
    columns = ('pixels', 'iou')

    def compute(self) -> Any:
        return self.iou()


@flax.struct.dataclass
class Metrics(metrics.Collection):
    """Mean over images of the mean cross-entropy of their pixels; mIoU; pixel accuracy."""

    loss: metrics.Average.from_output('loss')
    miou: MeanIoU
    pixel_accuracy: PixelAccuracy
    per_class: IoUPerClass

    def compute(self) -> dict[str, Any]:
        """Returns the value of each metric.

        Raises:
          UserError: no pixel has a class.
        """
        if not self.miou.count.sum():
            raise UserError(
                'no pixel of the held-out masks has a class: all of them are ignored by '
                'dataset.ignored or dataset.reduce_zero_label; correct these, or the masks.'
            )
        return super().compute()
