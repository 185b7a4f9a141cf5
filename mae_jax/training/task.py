"""What a task offers the loop; a new task is a new file beside this one."""

from typing import Any, Protocol

import jax
import numpy as np

Batch = dict[str, jax.Array]


class Task(Protocol):
    """WHAT is learned, as pure functions; the loop in `training/` knows nothing else of it."""

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Parameters (a nested dict) and model state (`{}` where there is none)."""

    def is_trained(self, path: str) -> bool:
        """Whether the parameter of this name ('encoder/pos_embed') is trained at all."""

    def is_required(self, path: str) -> bool:
        """Whether `init_from` must have this parameter, in the same shape."""

    def check(self, batch: dict[str, np.ndarray]) -> None:
        """Raises a UserError for a batch, as it was loaded, that the task cannot use."""

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """A batch as it was loaded -> as `loss` wants it, on the device.

        Normalises images, and draws whatever is random per row, for the whole global batch: what
        comes back may be split into micro-batches.
        """

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        """float32 mean over the rows of a prepared batch, further metrics, the new model state."""

    def evaluate(
        self, params: Any, model_state: Any, batch: Batch, first: jax.Array
    ) -> dict[str, jax.Array]:
        """Sums over the valid rows of a loaded batch, `count` among them.

        `first` is the number of the batch's first row in the evaluation set: what is random is
        keyed by an example's place, so that it is the same every time and for every batch size.
        """

    def flops_per_image(self) -> float:
        """Floating-point operations of forward and backward pass, matrix products alone."""
