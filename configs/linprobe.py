"""Linear probe of any checkpoint: the encoder is frozen, a linear classifier learns on top of it.

    python main.py --config=configs/linprobe.py --config.init_from=runs/folder

The cls token goes through a BatchNorm without affine parameters and into the head, which LARS
trains; what is unset is that of the run `init_from` belongs to (arXiv 2111.06377, Table 10 and
the official code). `--config.cache_features=True` runs the encoder over the data once, without
augmentation, and then takes seconds; batches larger than the data set want --config.batch_size.
"""

from configs import finetune


def make_linprobe(config):
    """The recipe of the linear probe, for the model and data of a fine-tuning config."""
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
