"""Metrics of a classifier over the held-out images."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics
from jaxtyping import Array, Bool, Float, Int


@flax.struct.dataclass
class Metrics(metrics.Collection):
    """Means over images: cross-entropy with the labels, top-1 and top-5 accuracy."""

    loss: metrics.Average.from_output('loss')
    top1: metrics.Accuracy
    top5: metrics.Average.from_output('top5')


@flax.struct.dataclass
class PerClass(metrics.Metric):
    """Correct and all examples of every class, int32 [num_classes] each."""

    title = 'accuracy'
    columns = ('images', 'top1')

    hits: jax.Array | np.ndarray
    count: jax.Array | np.ndarray

    @classmethod
    def from_model_output(
        cls,
        logits: Float[Array, 'B classes'],
        labels: Int[Array, ' B'],
        mask: Bool[Array, ' B'],
        **_: Any,
    ) -> 'PerClass':
        zeros = jnp.zeros(logits.shape[-1], jnp.int32)
        hits = (logits.argmax(axis=-1) == labels) & mask
        return cls(zeros.at[labels].add(hits), zeros.at[labels].add(mask))

    def merge(self, other: 'PerClass') -> 'PerClass':
        return PerClass(self.hits + other.hits, self.count + other.count)

    def compute(self) -> Any:
        """Returns the share of correct examples of each class; NaN where a class has none."""
        return np.where(self.count > 0, self.hits / np.maximum(self.count, 1), np.nan)


@flax.struct.dataclass
class MetricsPerClass(Metrics):
    """`Metrics`, and the accuracy of every class."""

    loss: metrics.Average.from_output('loss')
    top1: metrics.Accuracy
    top5: metrics.Average.from_output('top5')
    per_class: PerClass
