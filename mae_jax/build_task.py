"""A config -> its task: what is learned, and by which model."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from mae_jax.errors import UserError
from mae_jax.interop.tokenizers import Tokenizer, make_tokenizer
from mae_jax.models.classifier import Classifier
from mae_jax.models.mae import MAE
from mae_jax.models.vit import Encoder, architecture
from mae_jax.patches import grid_size
from mae_jax.tasks.classify import Classify
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.tasks.probe import FrozenEncoder


def image_size(config: ml_collections.ConfigDict) -> tuple[int, int]:
    """(height, width); one number stands for a square."""
    size = tuple(config.image_size)
    if len(size) not in (1, 2) or min(size) < 1:
        raise UserError(f'image_size={size} is not a height and a width: give e.g. (224, 224).')
    return (size[0], size[-1])


def make_architecture(model: ml_collections.ConfigDict) -> dict[str, int]:
    """{width, depth, heads, patch_size} of `config.model`."""
    sizes = {name: model[name] for name in ('patch_size', 'width', 'depth', 'heads')}
    return architecture(model.variant, **sizes)


def make_task(config: ml_collections.ConfigDict, source: Any) -> Pretrain | Classify:
    """The task of a config.

    Args:
      config: of the run.
      source: its training data, which say how many classes there are.

    Raises:
      UserError: a field that does not work, by name.
    """
    if config.task == 'pretrain':
        task = Pretrain(
            make_mae(config),
            image_size(config),
            tokenizer=make_tokenizer_of(config),
            **statistics(config),
        )
    elif config.task == 'classify':
        task = _classify(config, num_classes(config, source))
    else:
        raise UserError(f"task='{config.task}' is unknown: choose 'pretrain', 'classify' or 'knn'.")
    jax.eval_shape(task.init, jax.random.key(0))  # every mistake of shape shows here, at no cost
    return task


def make_frozen_encoder(config: ml_collections.ConfigDict, pool: str = 'mean') -> FrozenEncoder:
    """The encoder of a config, for features alone."""
    grid_size(image_size(config), make_architecture(config.model)['patch_size'])
    return FrozenEncoder(make_encoder(config), pool=pool, **statistics(config))


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


def make_mae(config: ml_collections.ConfigDict) -> MAE:
    """The autoencoder of a config; a converted model's states less than that of a run."""
    model, target = config.model, config.target
    return MAE(
        decoder_width=model.decoder_width,
        decoder_depth=model.decoder_depth,
        decoder_heads=model.decoder_heads,
        mask_ratio=config.mask.ratio,
        mask_strategy=config.mask.strategy,
        encoder_mask_tokens=model.get('encoder_mask_tokens', False),
        target=target.name,
        **{name: target[name] for name in ('components', 'codes', 'loss_on') if name in target},
        **_encoder(config),
    )


def make_tokenizer_of(config: ml_collections.ConfigDict) -> Tokenizer | None:
    """What makes the tokens that a config's model predicts; None for other targets."""
    target = config.target
    if target.name != 'token':
        return None
    grid = grid_size(image_size(config), make_architecture(config.model)['patch_size'])
    return make_tokenizer(
        target.tokenizer, codes=target.codes, grid=grid, channels=config.dataset.channels
    )


def make_encoder(config: ml_collections.ConfigDict) -> Encoder:
    """The encoder of a config."""
    return Encoder(**_encoder(config))


def make_classifier(
    config: ml_collections.ConfigDict, classes: int, frozen_blocks: int = 0
) -> Classifier:
    """The classifier of a config."""
    model = config.model
    return Classifier(
        num_classes=classes,
        pool=model.pool,
        batch_norm=model.batch_norm,
        head_std=model.head_std,
        drop_path=model.drop_path,
        frozen_blocks=frozen_blocks,
        **_encoder(config),
    )


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


def _encoder(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The fields of `Encoder`, which the modules of all tasks have."""
    model = config.model
    if model.dtype not in ('float32', 'bfloat16'):
        raise UserError(f"model.dtype='{model.dtype}': choose 'float32' or 'bfloat16'.")
    options = dict(dtype=jnp.dtype(model.dtype), remat=model.remat, scan=model.scan)
    options['attend'] = model.get('attention', 'plain')  # not in the configs of earlier versions
    return make_architecture(model) | options


def statistics(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """By what images are normalised."""
    dataset = config.dataset
    if not len(dataset.mean) == len(dataset.std) == dataset.channels:
        raise UserError(
            f'dataset.mean has {len(dataset.mean)} and dataset.std {len(dataset.std)} values, and '
            f'dataset.channels is {dataset.channels}: give one mean and one std a channel.'
        )
    return dict(mean=tuple(dataset.mean), std=tuple(dataset.std), scale=dataset.scale)
