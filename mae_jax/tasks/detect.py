"""Detection and instance segmentation: boxes, classes and masks, by Mask R-CNN on an encoder."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int
from ml_collections import ConfigDict

from mae_jax.errors import UserError
from mae_jax.models.detection.detector import Detections, Detector, Noise, Truth
from mae_jax.tasks.detect_masks import instances_of
from mae_jax.tasks.detect_metrics import FILE, Detected, Outputs, Precision, precision_of
from mae_jax.tasks.finetune import FineTuning
from mae_jax.training.optimizer import decays_but_norms
from mae_jax.training.sharding import on_mesh, put, replicated
from mae_jax.training.task import Batch, Card
from mae_jax.visualization.detection import detection_columns
from mae_jax.visualization.drawing import grid as draw_grid
from mae_jax.visualization.drawing import to_pixels


@dataclasses.dataclass(frozen=True)
class Detect(FineTuning):
    """The detection `Task` (paper, Table 4, as ViTDet does it).

    Batches are those of `mae_jax.data.transforms.boxes`.

    Attributes:
      image_size: height and width of the padded images.
      max_boxes: rows of the boxes of an image, padding included.
      names: of the categories.
      colours: red, green and blue of every category, in pictures.
    """

    model: Detector
    num_classes: int
    image_size: tuple[int, int]
    max_boxes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    names: tuple[str, ...] = ()
    colours: tuple[tuple[int, int, int], ...] = ()
    trained: str | float = 'all'
    per_class: bool = False
    layer_decay: float = 1.0
    ema_decay: float | None = None
    picture_every_steps: int = 0

    score = 'eval/box_ap'
    score_label = 'box AP'
    picture_name = 'detection'
    decay_mask = staticmethod(decays_but_norms)

    def check_data(self, source: Any, held_out: Any) -> None:
        splits = {'train_split': source.class_names, 'eval_split': held_out.class_names}
        if list(source.class_names) != list(held_out.class_names):
            texts = [
                f'{len(names)} categories in dataset.{split} ({", ".join(names[:5])}, ...)'
                for split, names in splits.items()
            ]
            raise UserError(f'{" and ".join(texts)} are not the same: give both the same list.')

    def without_loops(self) -> 'Detect':
        encoder = self.model.encoder.clone(scan=False, attention='plain')
        return dataclasses.replace(self, model=self.model.clone(encoder=encoder))

    def score_line(self, meta: Mapping[str, Any]) -> str:
        line = f'box AP {meta["eval/box_ap"]:.4f}'
        return line + f', mask AP {meta["eval/mask_ap"]:.4f}' * ('eval/mask_ap' in meta)

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """Draws by what anchors, proposals and branches are chosen, for the whole batch."""
        rows = len(batch['image'])
        shapes = self.model.noise_shapes(rows, self.image_size, batch['boxes'].shape[1])
        keys = jax.random.split(key, len(Noise._fields))
        keys = dict(zip(Noise._fields, keys, strict=True))
        noise = {f'{n}_noise': jax.random.uniform(keys[n], shape) for n, shape in shapes.items()}
        return {name: batch[name] for name in ('image', *Truth._fields)} | noise

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        """Computes the sum of the losses of proposals, classes, boxes and masks."""
        del key  # all that is random was drawn by `prepare`
        losses = self.model.apply(
            {'params': params},
            self._normalized(batch['image'], batch['size']),
            Truth(*(batch[name] for name in Truth._fields)),
            Noise(*(batch.get(f'{name}_noise') for name in Noise._fields)),
            method='losses',
        )
        return sum(losses.values()), {f'{n}_loss': x for n, x in losses.items()}, model_state

    def evaluate(
        self, params: Any, model_state: Any, batch: Batch, first: jax.Array | int
    ) -> Outputs:
        """Detects objects; `conclude` compares them with the truth."""
        del model_state, first  # nothing is random
        found = self.detections(params, batch['image'], batch['size'])
        return Outputs(
            *found,
            size=batch['size'],
            original_size=batch['original_size'],
            index=jnp.where(batch['valid'], batch['index'], -1),
        )

    def detections(self, params: Any, images: jax.Array, size: Int[jax.Array, 'B 2']) -> Detections:
        """Detects objects in images as they were loaded."""
        normalized = self._normalized(images, size)
        return self.model.apply({'params': params}, normalized, size, method='detect')

    def conclude(self, collected: Detected, held_out: Any) -> Precision:
        return precision_of(collected, held_out)

    def result_files(self, metrics: Precision) -> Mapping[str, str]:
        return {FILE: metrics.text()}

    def flops_per_image(self) -> float:
        """Counts the forward pass, and twice what learns: the last blocks, pyramid and heads."""
        return self.encoder_flops() + 3 * self.model.flops(self.image_size)

    def make_draw(
        self, batch: dict[str, np.ndarray], mesh: Mesh
    ) -> Callable[[Any, Any], np.ndarray] | None:
        """Draws images and what is detected in them, one row an image."""
        detect = jax.jit(on_mesh(self.detections, mesh), out_shardings=replicated(mesh))
        rows, sizes = np.flatnonzero(batch['valid']), batch['size']
        pixels = to_pixels(np.asarray(self.normalized(batch['image'])), self.mean, self.std)
        images = [pixels[row, : sizes[row, 0], : sizes[row, 1]] for row in rows]

        def draw(params: Any, model_state: Any) -> np.ndarray:
            inputs = (put(batch[name], replicated(mesh)) for name in ('image', 'size'))
            found = Detections(*map(np.asarray, detect(params, *inputs)))
            shown = [
                instances_of(Detections(*(field[row] for field in found)), size, size)
                for row, size in zip(rows, map(tuple, sizes[rows].tolist()), strict=True)
            ]
            columns = detection_columns(images, shown, self.names, np.array(self.colours))
            return draw_grid(columns)

        return draw

    def card(self, config: ConfigDict, source: Any) -> Card:
        how = self.how_trained(config)
        return Card(
            f'Detection and instance segmentation: Mask R-CNN on a plain ViT, {how}',
            {'categories': f'{self.num_classes:,}'},
            "detected = mae_jax.detect(path, ['a.jpg', 'b.jpg'])  # boxes, masks, classes, scores",
            is_loaded=False,
            converts_to=('detectron2', 'model.pkl'),
        )

    def _normalized(
        self, images: jax.Array, size: Int[jax.Array, 'B 2']
    ) -> Float32[jax.Array, 'B H W C']:
        """Normalises images; what is beyond their size becomes 0."""
        height, width = images.shape[1:3]
        down, right = size[:, :1], size[:, 1:]
        inside = (jnp.arange(height) < down)[:, :, None] & (jnp.arange(width) < right)[:, None]
        return jnp.where(inside[..., None], self.normalized(images), 0)
