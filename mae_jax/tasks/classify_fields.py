"""Reads the config of a classification run into its task."""

from typing import Any

from ml_collections import ConfigDict

from mae_jax.config.model import image_size, make_architecture, make_classifier, statistics
from mae_jax.errors import UserError
from mae_jax.tasks.classify import Classify
from mae_jax.tasks.finetune import check_finetuning, frozen_blocks, parse_trained


def num_classes(config: ConfigDict, source: Any) -> int:
    """Returns the number of classes of the data.

    Raises:
      UserError: there are no labels, or another number of classes than `config.num_classes`.
    """
    classes, expected = source.num_classes, config.num_classes
    if not classes:
        raise UserError(
            f'{config.dataset.name} ({config.dataset.path or config.dataset.train_split}) has no '
            f"labels, and task='{config.task}' needs them: a folder needs train/<class>/ and "
            'val/<class>/.'
        )
    if expected not in (None, classes):
        raise UserError(
            f'num_classes={expected}, but {config.dataset.name} has {classes} classes: leave '
            'num_classes unset to take the number from the data.'
        )
    return classes


def make_classify(config: ConfigDict, source: Any) -> Classify:
    """Makes the task of `task='classify'`.

    Args:
      config: of the run.
      source: the training data, which give the number of classes.

    Raises:
      UserError: a field does not work, or the data have no labels.
    """
    classes = num_classes(config, source)
    mix, depth = config.mix, make_architecture(config.model)['depth']
    trained = parse_trained(config.trained, depth)
    check_fields(config, trained)
    return Classify(
        make_classifier(config, classes, frozen_blocks=frozen_blocks(trained, depth)),
        image_size(config),
        trained=trained,
        label_smoothing=config.label_smoothing,
        mixup=mix.mixup,
        cutmix=mix.cutmix,
        switch_probability=mix.switch_probability,
        erase=config.dataset.erase,
        head_micro_batches=config.optimizer.accumulate if trained == 'head' else 1,
        caches_features=config.cache_features,
        per_class=config.per_class,
        layer_decay=config.optimizer.layer_decay,
        ema_decay=config.ema_decay,
        **statistics(config),
    )


def check_fields(config: ConfigDict, trained: str | float) -> None:
    """Raises a UserError for fields that contradict each other or are out of range."""
    frozen = trained == 'head'
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
    if config.model.batch_norm and not frozen and config.optimizer.accumulate > 1:
        raise UserError(
            'model.batch_norm=True needs the whole batch at once: set optimizer.accumulate=1, or '
            "trained='head'."
        )
    shares = {
        'label_smoothing': config.label_smoothing,
        'dataset.erase': config.dataset.erase,
        'mix.switch_probability': config.mix.switch_probability,
    }
    check_finetuning(config, shares)
    for field in ('mixup', 'cutmix'):
        if config.mix[field] < 0:
            raise UserError(f'mix.{field}={config.mix[field]} must be 0 (off) or more.')
