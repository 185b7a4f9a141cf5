"""Probes any checkpoint linearly: trains a linear classifier on top of the frozen encoder.

    python main.py --config=configs/linprobe.py --config.init_from=runs/folder

The cls token passes through a BatchNorm without affine parameters to the head, which LARS trains
(arXiv 2111.06377, Table 10 and the official code). Unset fields are taken from the run that
`init_from` belongs to. `--config.cache_features=True` runs the encoder over the data once, without
augmentation, and then takes seconds; if the data set is smaller than a batch, set
--config.batch_size.
"""

from mae_jax.configs import finetune


def make_linprobe(config):
    """Changes a fine-tuning config into the linear probe of its model and data, and returns it."""
    config.batch_size = 16384
    config.num_epochs = 50.0
    config.trained = 'head'
    config.label_smoothing = 0.0
    config.model.pool = 'cls'
    config.model.drop_path = 0.0
    config.model.batch_norm = True
    config.model.head_std = 0.01
    config.mix.mixup = config.mix.cutmix = 0.0
    config.dataset.crop = 'clamp'
    config.dataset.augment = ''
    config.dataset.erase = 0.0
    optimizer = config.optimizer
    optimizer.name = 'lars'
    optimizer.base_lr = 0.1
    optimizer.min_lr = 0.0
    optimizer.weight_decay = 0.0
    optimizer.warmup_epochs = 10.0
    optimizer.layer_decay = 1.0
    return config


def get_config():
    return make_linprobe(finetune.get_config())
