"""What a task offers to a run: the protocol of everything in `tasks/`, with its defaults."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from clu import metrics
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mae_jax.training.optimizer import make_optimizer

Batch = dict[str, Any]
"""Arrays by name: `image`, `label` and others, a row for each example."""
Crops = Callable[[int], Iterator[jax.Array]]
"""count -> the first `count` training crops, normalised, in chunks [b, H, W, C]."""


class Card(NamedTuple):
    """What the model card of a finished run states about its model."""

    title: str
    """The first sentence, without the encoder's size."""
    rows: Mapping[str, str | None]
    """Lines of the table 'Model'; None leaves a line out."""
    example: str
    """Python that applies the whole model; `model`, `params`, `images` and `normalize` exist, or
    `path` alone where it is not loaded."""
    needs_key: bool = False
    """Whether the example draws random numbers, and so imports jax."""
    is_loaded: bool = True
    """Whether `mae_jax.load` gives the whole model."""
    converts_to: tuple[str, str] = ('Hugging Face', 'model_huggingface')
    """Another library whose names `mae-jax convert` writes, and a path for it."""


class Task:
    """WHAT is learned, as pure functions; the loop in `training/` knows nothing else of it.

    A task of one's own derives from this class and defines `init`, `loss` and `evaluate`; a frozen
    dataclass makes its methods usable under `jax.jit`. `docs/extending.md` has an example.

    Attributes:
      model: the Flax module that is trained.
      score: the metric by which the best checkpoint is chosen ('eval/top1'); None keeps none.
      ema_decay: share that the running average of the parameters keeps at each step; None keeps no
        average.
      caches_features: whether the run trains on the features of its frozen encoder, computed once.
      picture_every_steps: interval of the pictures that `make_draw` draws; 0 draws none.
      picture_name: what loggers call these pictures.
      online_probe: fields `every_epochs` and `share` of the probe during training; None for none.
      probes_at_end: whether the frozen encoder is compared with the untrained one at the end.
      per_class: whether the accuracy, IoU or AP of every class is written at the end.
    """

    model: nn.Module
    score: str | None = None
    ema_decay: float | None = None
    caches_features: bool = False
    picture_every_steps: int = 0
    picture_name = 'reconstruction'
    online_probe: ConfigDict | None = None
    probes_at_end: bool = False
    per_class: bool = False

    # Learning: traced, pure.

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        """Makes parameters (a nested dict) and model state (`{}` where there is none)."""
        raise NotImplementedError

    def is_trained(self, path: str) -> bool:
        """Returns whether the parameter of this name ('encoder/pos_embed') is trained at all."""
        return True

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """Turns a batch as it was loaded into what `loss` takes, on the device.

        Normalises images, and draws whatever is random per row, for the whole global batch: the
        result may be split into micro-batches afterwards.
        """
        return batch

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        """Computes the float32 mean over the rows of a prepared batch.

        Returns:
          The loss, further scalar metrics by name, and the new model state.
        """
        raise NotImplementedError

    def flops_per_image(self) -> float:
        """Returns the operations of the matrix products of a training step, for one image.

        0 where they are not known: MFU is not reported then.
        """
        return 0.0

    # Evaluation: traced, pure.

    def evaluate(
        self, params: Any, model_state: Any, batch: Batch, first: jax.Array
    ) -> metrics.Collection:
        """Collects the metrics of the valid rows of a loaded batch (`batch['valid']`).

        Every metric is a mean over examples (`clu.metrics.Average` or a subclass), and each value
        is logged as `eval/<name>`. What is no mean is collected in an object with a method
        `on_host`, whose results have `merge`, and `conclude` makes metrics of them. `first` is the
        number of the batch's first row in the evaluation set: what is random is keyed by an
        example's place, to be the same every time and for every batch size.
        """
        raise NotImplementedError

    # Data and starting weights, on the host.

    def conclude(self, collected: Any, held_out: Any) -> Any:
        """Returns the metrics of a whole evaluation, which have `compute` and perhaps `per_class`.

        Every process calls it.

        Args:
          collected: what `evaluate` collected of all batches, merged on the host.
          held_out: the source that was evaluated.
        """
        return collected

    def result_files(self, metrics: Any) -> Mapping[str, str]:
        """Returns files of an evaluation for the work directory, name -> text."""
        return {}

    def check(self, batch: dict[str, np.ndarray]) -> None:
        """Raises a UserError for a batch, as it was loaded, that the task cannot use."""

    def check_data(self, source: Any, held_out: Any) -> None:
        """Raises a UserError where training and held-out data do not fit each other."""

    def is_required(self, path: str) -> bool:
        """Returns whether `init_from` must hold this parameter, in the same shape."""
        return self.is_trained(path)

    def fit(self, state: Any, config: ConfigDict, crops: Crops, *, inherited: bool) -> Any:
        """Returns the state with what must be computed from data or files before the first step.

        Args:
          state: `TrainState` with initial or loaded parameters.
          config: of the run.
          crops: gives training crops.
          inherited: whether `init_from` already held what is fitted here.
        """
        return state

    def untrained_warning(self, config: ConfigDict) -> str | None:
        """Returns what to print where nothing is loaded; None where that is as expected."""
        return None

    # Optimisation.

    def make_optimizer(
        self, fields: ConfigDict, schedule: optax.Schedule
    ) -> optax.GradientTransformation:
        """Makes the optimiser from `config.optimizer` and the learning rate of each step."""
        return make_optimizer(fields.name, schedule, **optimizer_fields(fields))

    def micro_batches(self, config: ConfigDict) -> int:
        """Returns into how many micro-batches the step splits a batch."""
        return config.optimizer.accumulate

    def without_loops(self) -> 'Task':
        """Returns the same task computed without loops, in which XLA counts a body once."""
        return self

    # Reports.

    def make_draw(
        self, batch: dict[str, np.ndarray], mesh: Mesh
    ) -> Callable[[Any, Any], np.ndarray] | None:
        """Makes the function (parameters, model state) -> picture, uint8 [H, W, 3], of a batch."""
        return None

    @property
    def score_label(self) -> str:
        """Returns the name of the score on the console and in the model card."""
        return (self.score or '').removeprefix('eval/')

    def score_line(self, meta: Mapping[str, Any]) -> str:
        """Returns the score in a checkpoint's metadata as the console shows it."""
        return f'{self.score_label} {meta[self.score]:.4f}'

    def card(self, config: ConfigDict, source: Any) -> Card:
        """Returns what the model card states about the model."""
        return Card(
            f'{type(self).__name__}, trained',
            {},
            "outputs = model.apply({'params': params}, normalize(images))",
        )


def optimizer_fields(fields: ConfigDict) -> dict[str, Any]:
    """Returns the fields of `config.optimizer` that every optimiser takes."""
    names = ('b1', 'b2', 'eps', 'weight_decay', 'clip_norm')
    return {name: fields[name] for name in names}
