"""Chooses what a config leaves unset from the data: batch size, epochs, learning rate, warm-up.

The paper's values hold for the 1,281,167 images of ImageNet. For n images:

| | pretrain | fine-tune, whole or in part | linear probe |
|---|---|---|---|
| batch size | 4096 sqrt(n / 1,281,167) | 1024 sqrt(n / 1,281,167) | n / 8, at most 1024 |
| epochs | 400 sqrt(10,000 / n) | 50, or 1,000 steps | 20, or 2,000 steps |
| limits of epochs | 100 to 1,600 | at most 200 | |
| learning rate | 2.4e-3 sqrt(batch / 4096) sqrt(768 / width) | 4e-3 sqrt(batch / 1024) | 1e-2 |
| warm-up | a twentieth of the run | a tenth | a tenth |
| weight decay | | | 100 / n, at most 1 |
| features | | | computed once (`cache_features`) |
| augmentation | | `STRONG` from 100,000 images on, else `LIGHT` | |

Segmentation has batches of 16 and, as on the 20,210 images of ADE20K, 127 epochs, or 1,000 steps,
at most 200 epochs; a learning rate of 1e-4 sqrt(batch / 16), ten times that with a frozen encoder;
and a twentieth of the run as warm-up.

Detection has batches of 64 sqrt(n / 118,287), as on the images of COCO, and 100 epochs, or 2,000
steps, at most 200 epochs; a learning rate of 1e-4 sqrt(batch / 64), ten times that with a frozen
encoder; and a twentieth of the run as warm-up.

A batch size is rounded to a power of two of at least 16, not above the data set, then up to a
multiple of what devices, `optimizer.accumulate` and `dataset.repeats` need. Learning rates scale
with the root of the batch, as suits AdamW; the probe's features are normalised, and one rate fits
all. The probe's weight decay does what the prior of a logistic regression does: the fewer images,
the more it is needed. LARS, where a config names it, changes weights by a share of their norm: its
rate, 6.4, is the same for every batch, and the decay is 0. `max_images_seen` replaces the
pretraining epochs by that many images. What the user gives is never replaced, and the rest follows
from it. A run that has begun keeps what its config.json holds.
"""

import dataclasses
import math

from ml_collections import ConfigDict

from mae_jax.config.fields import group_of
from mae_jax.errors import counted

IMAGENET = 1_281_167
COCO = 118_287
FIELDS = (
    'batch_size',
    'num_epochs',
    'cache_features',
    'optimizer.name',
    'optimizer.base_lr',
    'optimizer.weight_decay',
    'optimizer.warmup_epochs',
    'mix.mixup',
    'mix.cutmix',
    'model.drop_path',
    'dataset.augment',
    'dataset.erase',
    'dataset.crop_scale',
)
"""What a rule may choose; the config holds None until then."""
MANY = 100_000
"""Images from which fine-tuning is long enough for the paper's strong augmentation."""
STRONG = {
    'mix.mixup': 0.8,
    'mix.cutmix': 1.0,
    'model.drop_path': 0.2,
    'dataset.augment': 'rand-m9-mstd0.5-inc1',
    'dataset.erase': 0.25,
    'dataset.crop_scale': (0.08, 1.0),
}
LIGHT = {
    'mix.mixup': 0.0,
    'mix.cutmix': 0.0,
    'model.drop_path': 0.0,
    'dataset.augment': '',
    'dataset.erase': 0.0,
    'dataset.crop_scale': (0.35, 1.0),
}
DENSE_BATCH = {'segment': 16, 'detect': 64}
"""Batch sizes of which 1e-4 is the learning rate in segmentation and detection."""
MIN_BATCH = 16
MAX_EPOCHS = 1600.0
LARS_PEAK = 6.4


@dataclasses.dataclass(frozen=True)
class Rule:
    """How one protocol is trained on `examples` images.

    Attributes:
      warmup_share: share of the run.
      min_steps: a run of fewer is lengthened, up to `max_epochs`.
      max_epochs: no lengthening goes beyond.
    """

    examples: int
    batch_size: int
    epochs: float
    warmup_share: float
    min_steps: int = 0
    max_epochs: float = math.inf

    def epochs_of(self, batch_size: int) -> float:
        """Returns the epochs at this batch size."""
        enough = self.min_steps * batch_size / self.examples
        return min(max(self.epochs, enough), max(self.max_epochs, self.epochs))


def rule_of(protocol: str, examples: int) -> Rule:
    """Returns the rule of a protocol, as of `protocol_of`, for a number of training images."""
    root = math.sqrt(examples / IMAGENET)
    if protocol.startswith('segment'):
        batch = power_of_two(16, examples)
        return Rule(examples, batch, 127.0, 0.05, min_steps=1000, max_epochs=200.0)
    if protocol.startswith('detect'):
        batch = power_of_two(64 * math.sqrt(examples / COCO), examples)
        return Rule(examples, batch, 100.0, 0.05, min_steps=2000, max_epochs=200.0)
    if protocol == 'probe':
        batch = power_of_two(min(examples / 8, 1024), examples)
        return Rule(examples, batch, 20.0, 0.1, min_steps=2000)
    if protocol == 'finetune':
        batch = power_of_two(1024 * root, examples)
        return Rule(examples, batch, 50.0, 0.1, min_steps=1000, max_epochs=200.0)
    epochs = min(max(400 * math.sqrt(10_000 / examples), 100.0), MAX_EPOCHS)
    return Rule(examples, power_of_two(4096 * root, examples), epochs, 0.05)


def peak_learning_rate(protocol: str, batch_size: int, optimizer: str, width: int) -> float:
    """Returns the highest learning rate of a run; `width` is that of the encoder."""
    if optimizer == 'lars':
        return LARS_PEAK
    if protocol == 'probe':
        return 1e-2
    if usual := DENSE_BATCH.get(protocol.removesuffix('_frozen')):
        return (1e-3 if protocol.endswith('_frozen') else 1e-4) * math.sqrt(batch_size / usual)
    if protocol == 'finetune':
        return 4e-3 * math.sqrt(batch_size / 1024)
    return 2.4e-3 * math.sqrt(batch_size / 4096) * math.sqrt(768 / width)


def power_of_two(number: float, examples: int) -> int:
    """Rounds to the nearest power of two from `MIN_BATCH` to the number of examples."""
    nearest = 2 ** round(math.log2(max(number, MIN_BATCH)))
    return min(nearest, 2 ** int(math.log2(examples)))


def protocol_of(config: ConfigDict) -> str:
    """Returns the rule by which a config trains.

    It is 'pretrain', 'finetune', 'probe', 'segment', 'segment_frozen', 'detect' or 'detect_frozen'.
    """
    if config.task in DENSE_BATCH:
        return f'{config.task}_frozen' if config.trained == 'head' else config.task
    if 'trained' not in config:
        return 'pretrain'
    return 'probe' if config.trained == 'head' else 'finetune'


def choose(config: ConfigDict, *, examples: int, width: int, devices: int) -> ConfigDict:
    """Returns a copy of a config in which no field of `FIELDS` is unset that a run needs.

    Args:
      config: of a run.
      examples: number of training images.
      width: of the encoder.
      devices: over which a batch is split.
    """
    config = config.copy_and_resolve_references()
    protocol = protocol_of(config)
    rule, optimizer, dataset = rule_of(protocol, examples), config.optimizer, config.dataset
    if config.batch_size is None:
        multiple = math.lcm(devices * optimizer.accumulate, devices * dataset.repeats)
        config.batch_size = max(math.ceil(rule.batch_size / multiple), 1) * multiple
    batch_size = config.batch_size
    if config.num_epochs is None and config.num_steps is None:
        config.num_epochs = rule.epochs_of(batch_size)
        if seen := config.get('max_images_seen'):
            config.num_epochs = min(seen / examples, MAX_EPOCHS)
    if optimizer.name is None:
        optimizer.name = 'adamw'
    if optimizer.base_lr is None:
        peak = peak_learning_rate(protocol, batch_size, optimizer.name, width)
        optimizer.base_lr = peak * 256 / batch_size
    if optimizer.weight_decay is None:
        optimizer.weight_decay = 0.0 if optimizer.name == 'lars' else min(100 / examples, 1.0)
    if optimizer.warmup_epochs is None:
        steps = config.num_steps
        epochs = config.num_epochs if steps is None else steps * batch_size / examples
        optimizer.warmup_epochs = rule.warmup_share * epochs
    if config.get('cache_features', False) is None:
        config.cache_features = (
            protocol == 'probe' and dataset.repeats == 1 and dataset.resize == 'host'
        )
    for field, value in (STRONG if examples >= MANY else LIGHT).items():
        if field in _unset(config):
            group_of(config, field)[_name(field)] = value
    return config


def unset_fields(config: ConfigDict) -> list[str]:
    """Returns the fields that `choose` would choose, by their dotted names."""
    return [f for f in _unset(config) if f != 'num_epochs' or config.num_steps is None]


def _unset(config: ConfigDict) -> list[str]:
    groups = {field: group_of(config, field) for field in FIELDS}
    return [f for f, group in groups.items() if group is not None and group[_name(f)] is None]


def _name(field: str) -> str:
    return field.rpartition('.')[2]


def keep(config: ConfigDict, begun: ConfigDict) -> None:
    """Sets what is unset, and dtypes of 'auto', to the values of a run that has begun."""
    for field in _unset(config):
        if (old := group_of(begun, field)) is not None:
            group_of(config, field)[_name(field)] = old[_name(field)]
    for field, earlier in {'dtype': 'auto', 'residual_dtype': 'bfloat16'}.items():
        if config.model.get(field) == 'auto':
            config.model[field] = begun.model.get(field, earlier)


def explain(chosen: list[str], config: ConfigDict, steps: int, examples: int, classes: int) -> str:
    """Returns one line about what was chosen and from what; '' where nothing was.

    Args:
      chosen: `unset_fields` of the config before `choose`.
      config: the one after it.
      steps: length of the run.
      classes: of the labels; 0 where there are none.
    """
    if not chosen:
        return ''
    optimizer = config.optimizer
    texts = {
        'batch_size': f'batch {config.batch_size}',
        'num_epochs': counted(steps, 'step'),
        'optimizer.base_lr': f'lr {optimizer.base_lr * config.batch_size / 256:.1e}',
        'optimizer.name': optimizer.name,
        'cache_features': 'cached features' if config.get('cache_features') else '',
        'dataset.augment': 'strong augmentation' if examples >= MANY else 'light augmentation',
    }
    about = counted(examples, 'image') + (f', {counted(classes, "class")}' if classes else '')
    return f'{", ".join(texts[f] for f in texts if f in chosen and texts[f])}: {about}'
