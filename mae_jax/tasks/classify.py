"""Classification: an encoder fine-tuned in part or whole, from scratch, or linearly probed."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from mae_jax.config.model import image_size, make_architecture, make_classifier, statistics
from mae_jax.errors import UserError
from mae_jax.models.classifier import Classifier
from mae_jax.models.patches import grid_size
from mae_jax.models.vit import blocks_flops
from mae_jax.tasks import augment
from mae_jax.tasks.preprocess import loaded_images, normalize
from mae_jax.training.sharding import join_rows, split_rows
from mae_jax.training.task import Batch


@dataclasses.dataclass(frozen=True)
class Classify:
    """The classification `Task` (paper, appendix A.1). Mean, std and scale are of `normalize`.

    Attributes:
      trained: 'all', 'head' (the linear probe's), or a number of blocks: the last k of them and
        what follows; 0.5 is the MLP of the last block.
      micro_batches: in how many parts the frozen encoder of trained='head' goes through a batch.
        BatchNorm and head always see the whole.
      cached: batches hold the encoder's features in place of images.
      per_class: `evaluate` counts for every class too.
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
    micro_batches: int = 1
    cached: bool = False
    per_class: bool = False

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        images = jnp.zeros((1, *self.image_size, len(self.mean)))
        variables = dict(self.model.init(key, images))
        return variables.pop('params'), variables

    def is_trained(self, path: str) -> bool:
        return learns(path, self.trained, self.model.depth)

    def is_required(self, path: str) -> bool:
        """The encoder; heads come and go."""
        return of_encoder(path)

    def check(self, batch: dict[str, np.ndarray]) -> None:
        labels = batch['label'][batch.get('valid', slice(None))]
        if labels.size and not 0 <= labels.min() <= labels.max() < self.model.num_classes:
            raise UserError(
                f'An image has the label {labels.min() if labels.min() < 0 else labels.max()} '
                f'(-1: none) where there are {self.model.num_classes} classes: every image needs '
                'a label, also in dataset.eval_split.'
            )

    @property
    def augments(self) -> bool:
        """Whether images are changed on the device; then `prepare` has to normalise them."""
        return not self.cached and bool(self.erase or self.mixup or self.cutmix)

    def prepare(self, batch: Batch, key: jax.Array) -> Batch:
        """Normalises, erases and mixes, in that order, and draws which branches are dropped.

        Images that are only to be normalised stay as they were loaded, a quarter as large.
        """
        erase_key, mix_key, path_key = jax.random.split(key, 3)
        images = loaded_images(batch, self.image_size)
        targets = augment.soft_targets(batch['label'], self.model.num_classes, self.label_smoothing)
        if self.augments:
            images = self._normalized(images)
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
        """Cross-entropy with the soft targets, mean over the rows."""
        del key  # all that is random was drawn by `prepare`
        loaded = not self.augments
        features = batch['image'] if self.cached else self._features(params, batch, loaded)
        logits, state = self.model.apply(
            {'params': params} | model_state,
            features,
            train=True,
            method='classify',
            mutable=list(model_state),
        )
        return optax.softmax_cross_entropy(logits, batch['target']).mean(), {}, dict(state)

    def evaluate(
        self, params: Any, model_state: Any, batch: Batch, first: jax.Array
    ) -> dict[str, jax.Array]:
        """Sums over valid rows: cross-entropy with the labels, top-1 and top-5 hits, `count`.

        With `per_class` also `class_hits` and `class_count`, int32 [num_classes].
        """
        del first  # nothing is random
        features = batch['image'] if self.cached else self.features(params, batch)
        logits = self.model.apply(
            {'params': params} | model_state, features, train=False, method='classify'
        )
        label, valid = batch['label'], batch['valid']
        label = jnp.where(valid, label, 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, label)
        _, best = jax.lax.top_k(logits, min(5, self.model.num_classes))
        hits = (best == label[:, None]) & valid[:, None]
        sums = {
            'loss': jnp.sum(jnp.where(valid, losses, 0.0)),
            'top1': jnp.sum(hits[:, 0]),
            'top5': jnp.sum(hits),
            'count': jnp.sum(valid),
        }
        if self.per_class:
            zeros = jnp.zeros(self.model.num_classes, jnp.int32)
            sums['class_hits'] = zeros.at[label].add(hits[:, 0])
            sums['class_count'] = zeros.at[label].add(valid)
        return sums

    def features(self, params: Any, batch: Batch) -> jax.Array:
        """A loaded batch -> what the head is given, float32 [B,D]; nothing is augmented."""
        return self._features(params, {'image': batch['image']}, loaded=True)

    def flops_per_image(self) -> float:
        """Matrix products of the forward pass, and twice those of the blocks that learn."""
        if self.cached:
            return 6.0 * self.model.width * self.model.num_classes
        model = self.model
        rows, columns = grid_size(self.image_size, model.patch_size)
        tokens = rows * columns + 1
        embedding = 2 * tokens * model.patch_size**2 * len(self.mean) * model.width
        forward = embedding + blocks_flops(model.depth, model.width, tokens)
        backward = 2 * blocks_flops(model.depth - model.frozen_blocks, model.width, tokens)
        if self.trained == 0.5:  # an MLP whose own input needs no gradient: 3 products of 4
            backward = 24.0 * tokens * model.width**2
        return forward + backward

    def _features(self, params: Any, batch: Batch, loaded: bool) -> jax.Array:
        """Of images as they were `loaded`, or else already normalised."""

        def encode(rows: Batch) -> jax.Array:
            images = self._normalized(rows['image']) if loaded else rows['image']
            return self.model.apply(
                {'params': params}, images, rows.get('path_noise'), method='features'
            )

        rows = {name: batch[name] for name in ('image', 'path_noise') if name in batch}
        if self.micro_batches == 1:
            return encode(rows)
        parts = jax.tree.map(lambda x: split_rows(x, self.micro_batches), rows)
        return join_rows(jax.lax.map(encode, parts))

    def _normalized(self, images: jax.Array) -> jax.Array:
        return normalize(images, scale=self.scale, mean=self.mean, std=self.std)


def of_encoder(path: str) -> bool:
    """Whether every encoder has a parameter of this name.

    With mean pooling it has no norm; a mask token it has only where it was pretrained with one.
    """
    return path.startswith('encoder/') and not path.startswith(
        ('encoder/norm/', 'encoder/mask_token')
    )


def learns(path: str, trained: str | float, depth: int) -> bool:
    """Whether a parameter of this name learns; for `trained` see `Classify` (paper, Figure 9)."""
    if trained == 'all':
        return True
    if trained == 'head':
        return path.startswith('head/')
    part, *rest = path.split('/')
    if part != 'encoder' or rest[0] == 'norm':  # what follows the blocks
        return True
    if rest[0] != 'blocks':
        return False
    block = int(rest[1].removeprefix('block_'))
    if trained == 0.5:
        return block == depth - 1 and rest[2] == 'mlp'
    return block >= depth - trained


def num_classes(config: ml_collections.ConfigDict, source: Any) -> int:
    """The classes of the data; a UserError where there are none, or not as many as config says."""
    found, wanted = source.num_classes, config.num_classes
    if not found:
        raise UserError(
            f'{config.dataset.name} ({config.dataset.path or config.dataset.train_split}) has no '
            f"labels, and task='{config.task}' needs them: a folder needs train/<class>/ and "
            'val/<class>/.'
        )
    if wanted not in (None, found):
        raise UserError(
            f'num_classes={wanted}, but {config.dataset.name} has {found} classes: leave '
            'num_classes unset to take the number from the data.'
        )
    return found


def _classify(config: ml_collections.ConfigDict, classes: int) -> Classify:
    mix, depth = config.mix, make_architecture(config.model)['depth']
    trained = parse_trained(config.trained, depth)
    _check_classify(config, trained)
    learning = {'all': depth, 'head': 0}.get(trained, trained)
    return Classify(
        make_classifier(config, classes, frozen_blocks=depth - math.ceil(learning)),
        image_size(config),
        trained=trained,
        label_smoothing=config.label_smoothing,
        mixup=mix.mixup,
        cutmix=mix.cutmix,
        switch_probability=mix.switch_probability,
        erase=config.dataset.erase,
        micro_batches=config.optimizer.accumulate if trained == 'head' else 1,
        cached=config.cache_features,
        per_class=config.per_class,
        **statistics(config),
    )


def parse_trained(trained: str, depth: int) -> str | float:
    """`config.trained`: 'all', 'head', or a number of blocks; all the blocks are 'all'.

    Raises:
      UserError: it is none of these, or more blocks than there are.
    """
    if trained in ('all', 'head'):
        return trained
    try:
        blocks = float(trained)
    except ValueError:
        blocks = -1.0
    if blocks != 0.5 and (blocks < 0 or blocks % 1):
        raise UserError(
            f"trained='{trained}' is unknown: choose 'all', 'head', or how many of the last blocks "
            '(0, 0.5 for the MLP of the last one, 1, 2, ...).'
        )
    if blocks > depth:
        raise UserError(f'trained={trained} blocks, but the model has {depth}: choose fewer.')
    return 'all' if blocks == depth else blocks


def _check_classify(config: ml_collections.ConfigDict, trained: str | float) -> None:
    """Refuses what contradicts itself."""
    frozen, model = trained == 'head', config.model
    if config.cache_features and not frozen:
        raise UserError(
            'cache_features=True keeps the features of a frozen encoder, and '
            f"trained='{config.trained}' would change it: set trained='head', or "
            'cache_features=False.'
        )
    dataset = config.dataset
    if config.cache_features and (dataset.repeats != 1 or dataset.resize != 'host'):
        raise UserError(
            'cache_features=True sees every image once, as evaluation does: leave dataset.repeats '
            "at 1 and dataset.resize at 'host'."
        )
    if model.batch_norm and not frozen and config.optimizer.accumulate > 1:
        raise UserError(
            'model.batch_norm=True needs the whole batch at once: set optimizer.accumulate=1, or '
            "trained='head'."
        )
    shares = {
        'label_smoothing': config.label_smoothing,
        'model.drop_path': model.drop_path,
        'dataset.erase': config.dataset.erase,
        'mix.switch_probability': config.mix.switch_probability,
        'ema_decay': config.ema_decay or 0.0,
    }
    for field, share in shares.items():
        if not 0 <= share <= 1 or (field == 'model.drop_path' and share == 1):
            raise UserError(f'{field}={share} must be from 0 to 1, a share or a probability.')
    for field in ('mixup', 'cutmix'):
        if config.mix[field] < 0:
            raise UserError(f'mix.{field}={config.mix[field]} must be 0 (off) or more.')
