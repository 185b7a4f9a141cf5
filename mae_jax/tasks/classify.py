"""Classification: an encoder fine-tuned in part or whole, from scratch, or linearly probed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from mae_jax.errors import UserError
from mae_jax.models.classifier import Classifier
from mae_jax.tasks import augment
from mae_jax.tasks.classify_metrics import Metrics, MetricsPerClass
from mae_jax.tasks.finetune import FineTuning
from mae_jax.tasks.preprocess import loaded_images
from mae_jax.training.sharding import join_rows, split_rows
from mae_jax.training.task import Batch, Card


@dataclasses.dataclass(frozen=True)
class Classify(FineTuning):
    """The classification `Task` (paper, appendix A.1); trained='head' is a linear probe.

    Attributes:
      head_micro_batches: number of pieces in which the frozen encoder of trained='head' sees a
        batch. BatchNorm and head always see the whole.
      caches_features: batches hold the encoder's features in place of images.
      per_class: `evaluate` counts every class too.
    """

    model: Classifier
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    trained: str | float = 'all'
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    switch_probability: float = 0.5
    erase: float = 0.0
    head_micro_batches: int = 1
    caches_features: bool = False
    per_class: bool = False
    layer_decay: float = 1.0
    ema_decay: float | None = None

    score = 'eval/top1'

    @property
    def encoder(self) -> Classifier:
        return self.model

    def check(self, batch: dict[str, np.ndarray]) -> None:
        labels = batch['label'][batch.get('valid', slice(None))]
        if labels.size and not 0 <= labels.min() <= labels.max() < self.model.num_classes:
            raise UserError(
                f'An image has the label {labels.min() if labels.min() < 0 else labels.max()} '
                f'(-1: none) where there are {self.model.num_classes} classes: every image needs '
                'a label, also in dataset.eval_split.'
            )

    def micro_batches(self, config: ConfigDict) -> int:
        """Returns 1 for a linear probe: only its encoder is split, by `head_micro_batches`."""
        return 1 if self.trained == 'head' else config.optimizer.accumulate

    def without_loops(self) -> 'Classify':
        model = self.model.clone(scan=False, attention='plain')
        return dataclasses.replace(self, model=model, head_micro_batches=1)

    @property
    def score_label(self) -> str:
        return 'top-1'

    def score_line(self, meta: Mapping[str, Any]) -> str:
        return f'top-1 {meta["eval/top1"]:.4f}, top-5 {meta["eval/top5"]:.4f}'

    def card(self, config: ConfigDict, source: Any) -> Card:
        if self.trained == 'head':
            title = 'Classifier: a linear probe of a frozen encoder, trained'
        elif self.trained != 'all':
            title = f'Classifier, fine-tuned in its last {config.trained} block(s)'
        elif config.init_from:
            title = 'Classifier, fine-tuned'
        else:
            title = 'Classifier, trained from scratch'
        rows = {'pooling': config.model.pool, 'classes': f'{source.num_classes:,}'}
        if (block := config.get('probe_block', -1)) != -1:
            rows['features'] = f'after block {block} of the encoder that it starts from'
        example = "logits = model.apply({'params': params}, normalize(images))  # [B, classes]"
        return Card(title, rows, example)

    @property
    def augments(self) -> bool:
        """Returns whether images are changed on the device, so that `prepare` normalises them."""
        return not self.caches_features and bool(self.erase or self.mixup or self.cutmix)

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """Normalises, erases and mixes, in that order, and draws which branches are dropped.

        Images that are only to be normalised stay as they were loaded, a quarter as large.
        """
        erase_key, mix_key, path_key = jax.random.split(key, 3)
        images = loaded_images(batch, self.image_size)
        targets = augment.soft_targets(batch['label'], self.model.num_classes, self.label_smoothing)
        if self.augments:
            images = self.normalized(images)
            images = augment.erase(images, erase_key, probability=self.erase)
            images, targets = augment.mix(
                images,
                targets,
                mix_key,
                mixup=self.mixup,
                cutmix=self.cutmix,
                switch_probability=self.switch_probability,
            )
        prepared = {'image': images, 'target': targets}
        if self.model.drop_path:
            shape = (len(images), self.model.depth, 2)
            prepared['path_noise'] = jax.random.uniform(path_key, shape)
        return prepared

    def loss(
        self, params: Any, model_state: Any, batch: Batch, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        """Computes the cross-entropy with the soft targets, mean over the rows."""
        del key  # all that is random was drawn by `prepare`
        loaded = not self.augments
        features = batch['image'] if self.caches_features else self._features(params, batch, loaded)
        logits, state = self.model.apply(
            {'params': params} | model_state,
            features,
            train=True,
            method='classify',
            mutable=list(model_state),
        )
        return optax.softmax_cross_entropy(logits, batch['target']).mean(), {}, dict(state)

    def evaluate(
        self, params: Any, model_state: Any, batch: Batch, first: jax.Array | int
    ) -> Metrics:
        """Collects cross-entropy and accuracies of the valid rows, with `per_class` by class."""
        del first  # nothing is random
        features = batch['image'] if self.caches_features else self.features(params, batch)
        logits = self.model.apply(
            {'params': params} | model_state, features, train=False, method='classify'
        )
        valid = batch['valid']
        labels = jnp.where(valid, batch['label'], 0)
        _, best = jax.lax.top_k(logits, min(5, self.model.num_classes))
        collection = MetricsPerClass if self.per_class else Metrics
        return collection.single_from_model_output(
            loss=optax.softmax_cross_entropy_with_integer_labels(logits, labels),
            top5=jnp.any(best == labels[:, None], axis=-1).astype(jnp.float32),
            logits=logits,
            labels=labels,
            mask=valid,
        )

    def features(self, params: Any, batch: Batch) -> jax.Array:
        """Computes the head's input, float32 [B,D], for a loaded batch without augmentation."""
        return self._features(params, {'image': batch['image']}, loaded=True)

    def flops_per_image(self) -> float:
        """Counts the forward pass, and twice the blocks that learn."""
        if self.caches_features:
            return 6.0 * self.model.width * self.model.num_classes
        return self.encoder_flops()

    def _features(self, params: Any, batch: Batch, loaded: bool) -> jax.Array:
        """Encodes images as they were `loaded`, or else already normalised ones."""

        def encode(rows: Batch) -> jax.Array:
            images = self.normalized(rows['image']) if loaded else rows['image']
            return self.model.apply(
                {'params': params}, images, rows.get('path_noise'), method='features'
            )

        rows = {name: batch[name] for name in ('image', 'path_noise') if name in batch}
        if self.head_micro_batches == 1:
            return encode(rows)
        split = jax.tree.map(lambda x: split_rows(x, self.head_micro_batches), rows)
        return join_rows(jax.lax.map(encode, split))
