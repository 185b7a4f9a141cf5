"""Semantic segmentation: a class for every pixel, by heads on an encoder that is trained or not."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int, Integer
from ml_collections import ConfigDict

from mae_jax.models.patches import grid_size
from mae_jax.models.segmentation.segmenter import Noise, Segmenter
from mae_jax.models.segmentation.windows import map_enlarged, slide
from mae_jax.tasks.finetune import FineTuning
from mae_jax.tasks.segment_metrics import Metrics, count_pixels
from mae_jax.training.sharding import on_mesh, put, replicated
from mae_jax.training.task import Batch, Card
from mae_jax.visualization.drawing import grid as draw_grid
from mae_jax.visualization.segmentation import Colours, segmentation_columns

TITLES = {'linear': 'a linear head', 'upernet': 'UperNet'}


@dataclasses.dataclass(frozen=True)
class Segment(FineTuning):
    """The segmentation `Task` (paper, Table 5).

    Batches are those of `mae_jax.data.transforms.pairs`: pixels of masks that are not below the
    number of classes count neither in the loss nor in any metric.

    Attributes:
      image_size: height and width of training crops, and of the windows of evaluation.
      stride: between windows, in rows and columns.
      colours: red, green and blue of every class, in pictures.
      auxiliary_weight: of the auxiliary head's loss.
    """

    model: Segmenter
    num_classes: int
    image_size: tuple[int, int]
    stride: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    colours: Colours
    scale: float = 255.0
    trained: str | float = 'all'
    auxiliary_weight: float = 0.4
    per_class: bool = False
    layer_decay: float = 1.0
    ema_decay: float | None = None
    picture_every_steps: int = 0

    score = 'eval/miou'
    score_label = 'mIoU'
    picture_name = 'segmentation'

    def without_loops(self) -> 'Segment':
        encoder = self.model.encoder.clone(scan=False, attention='plain')
        return dataclasses.replace(self, model=self.model.clone(encoder=encoder))

    def score_line(self, meta: Mapping[str, Any]) -> str:
        accuracy = meta['eval/pixel_accuracy']
        return f'mIoU {meta["eval/miou"]:.4f}, pixel accuracy {accuracy:.4f}'

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """Draws which branches and channels are dropped; images are normalised by `loss`."""
        model, rows = self.model, len(batch['image'])
        heads = {'head': model.head, 'auxiliary': model.auxiliary}
        shapes = {name: (rows, head.width) for name, head in heads.items() if head and head.dropout}
        if model.drop_path:
            shapes['path'] = (rows, model.encoder.depth, 2)
        keys = dict(zip(('head', 'auxiliary', 'path'), jax.random.split(key, 3), strict=True))
        noise = {f'{n}_noise': jax.random.uniform(keys[n], shape) for n, shape in shapes.items()}
        return {'image': batch['image'], 'mask': batch['mask']} | noise

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        """Computes the cross-entropy, mean over the labelled pixels of the whole batch.

        mmsegmentation divides by all pixels, labelled or not: there batches with fewer labels count
        less.
        """
        del key  # all that is random was drawn by `prepare`
        noise = Noise(*(batch.get(f'{name}_noise') for name in Noise._fields))
        logits, state = self.model.apply(
            {'params': params} | model_state,
            self.normalized(batch['image']),
            noise,
            train=True,
            mutable=list(model_state),
        )
        labels, counted = self._labels(batch['mask'])

        def mean(logits: Array) -> Array:
            total = jnp.where(counted, cross_entropy(logits, labels), 0).sum()
            return total / jnp.maximum(counted.sum(), 1)

        loss, metrics = mean(logits.head), {}
        if logits.auxiliary is not None:
            auxiliary = mean(logits.auxiliary)
            metrics = {'head_loss': loss, 'auxiliary_loss': auxiliary}
            loss += self.auxiliary_weight * auxiliary
        return loss, metrics, dict(state)

    def evaluate(
        self, params: Any, model_state: Any, batch: Batch, first: jax.Array | int
    ) -> Metrics:
        """Collects the metrics of the valid rows, at the size of their masks.

        An image without a labelled pixel has no loss.
        """
        del first  # nothing is random
        labels, counted = self._labels(batch['mask'])
        counted &= batch['valid'][:, None, None]

        def score(row: Array, logits: Array) -> tuple[Array, Array]:
            loss = jnp.where(counted[:, row], cross_entropy(logits, labels[:, row]), 0)
            return logits.argmax(axis=-1), loss.sum(axis=-1)

        predicted, losses = map_enlarged(
            score,
            self.logits(params, model_state, batch),
            batch['size'],
            batch['mask_size'],
            labels.shape[1:],
        )
        pixels = counted.sum(axis=(1, 2))
        counts = count_pixels(jnp.moveaxis(predicted, 1, 0), labels, counted, self.num_classes)
        return Metrics.single_from_model_output(
            loss=losses.sum(axis=0) / jnp.maximum(pixels, 1), mask=pixels > 0, **counts
        )

    def logits(
        self, params: Any, model_state: Any, batch: Batch
    ) -> Float32[Array, 'B H W {self.num_classes}']:
        """Computes logits at the size of the images of an evaluation batch, by sliding windows."""

        def predict(images: Float[Array, 'B h w C']) -> Float32[Array, 'B h w classes']:
            return self.model.apply({'params': params} | model_state, images).head

        images = self.normalized(batch['image'])
        return slide(predict, images, batch['size'], self.image_size, self.stride)

    def flops_per_image(self) -> float:
        """Counts the forward pass, and twice what learns: the last blocks, and heads."""
        model, encoder = self.model, self.encoder
        grid = grid_size(self.image_size, encoder.patch_size)
        heads = [head for head in (model.head, model.auxiliary) if head]
        of_heads = sum(head.flops(grid, encoder.width, len(model.taps)) for head in heads)
        return self.encoder_flops() + 3 * of_heads

    def make_draw(
        self, batch: dict[str, np.ndarray], mesh: Mesh
    ) -> Callable[[Any, Any], np.ndarray] | None:
        """Draws image, truth and prediction, one row an image."""

        def predict(params: Any, model_state: Any, batch: Batch) -> Int[Array, 'B H W']:
            return self.logits(params, model_state, batch).argmax(axis=-1)

        predict = jax.jit(on_mesh(predict, mesh), out_shardings=replicated(mesh))
        rows = np.flatnonzero(batch['valid'])
        shown = {name: batch[name][rows] for name in ('image', 'size', 'mask', 'mask_size')}
        images = np.asarray(self.normalized(shown['image']))
        undo = dict(mean=self.mean, std=self.std)

        def draw(params: Any, model_state: Any) -> np.ndarray:
            inputs = {name: put(batch[name], replicated(mesh)) for name in ('image', 'size')}
            predicted = np.asarray(predict(params, model_state, inputs))[rows]
            columns = segmentation_columns(
                images,
                predicted,
                shown['size'],
                self.colours,
                truth=(shown['mask'], shown['mask_size']),
                **undo,
            )
            return draw_grid(columns)

        return draw

    def card(self, config: ConfigDict, source: Any) -> Card:
        return Card(
            f'Semantic segmentation: {TITLES[config.model.head]}, {self.how_trained(config)}',
            {
                'head': config.model.head,
                'blocks it sees': ', '.join(map(str, self.model.taps)),
                'classes': f'{self.num_classes:,}',
            },
            "masks = mae_jax.segment(path, ['a.jpg', 'b.jpg'])  # the class of every pixel",
            is_loaded=False,
        )

    def _labels(
        self, mask: Integer[Array, 'B H W']
    ) -> tuple[Int[Array, 'B H W'], Bool[Array, 'B H W']]:
        """Returns the classes of pixels, and which of them have one."""
        labels = jnp.asarray(mask, jnp.int32)
        return labels, labels < self.num_classes


def cross_entropy(logits: Float32[Array, '*S K'], labels: Int[Array, '*S']) -> Float32[Array, '*S']:
    """Computes the cross-entropy of every pixel; where there is no class, a number without meaning.

    The logit of the class is a masked sum: the gradient of an index would be a scatter.
    """
    is_class = labels[..., None] == jnp.arange(logits.shape[-1])
    of_class = jnp.where(is_class, logits, 0).sum(axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - of_class
