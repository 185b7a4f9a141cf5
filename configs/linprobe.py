"""Probes any checkpoint linearly: trains a linear classifier on top of the frozen encoder.

    python main.py --config=configs/linprobe.py --config.init_from=runs/folder

The cls token passes through a BatchNorm without affine parameters to the head, as in the paper
(arXiv 2111.06377, Table 10). Unset fields are taken from the run that `init_from` belongs to, or
chosen from the number of training images (mae_jax/config/recipe.py): the encoder runs over the data
once, without augmentation, and the head is trained on its features in seconds, by AdamW.
linprobe_base, _large and _huge define the paper's recipe in full: LARS in batches of 16,384, on
augmented images.
"""

from ml_collections.config_dict import placeholder

from mae_jax.configs import finetune


def make_linprobe(config):
    """Changes a fine-tuning config into the paper's linear probe of its model and data."""
    set_probe(config)
    config.batch_size = 16384
    config.num_epochs = 50.0
    config.cache_features = False
    config.dataset.flip = True
    config.optimizer.name = 'lars'
    config.optimizer.base_lr = 0.1
    config.optimizer.warmup_epochs = 10.0
    return config


def set_probe(config):
    """Sets the fields in which every linear probe differs from fine-tuning."""
    config.trained = 'head'
    config.label_smoothing = 0.0
    config.model.pool = 'cls'
    config.model.drop_path = 0.0
    config.model.batch_norm = True
    config.model.head_std = 0.01
    config.mix.mixup = config.mix.cutmix = 0.0
    config.dataset.crop = 'clamp'
    config.dataset.crop_scale = (0.08, 1.0)
    config.dataset.augment = ''
    config.dataset.erase = 0.0
    config.optimizer.min_lr = 0.0
    config.optimizer.weight_decay = 0.0
    config.optimizer.layer_decay = 1.0


def paper():
    """Returns the paper's recipe, for the model and the data of `init_from`."""
    return make_linprobe(finetune.get_config())


def get_config():
    config = finetune.get_config()
    set_probe(config)
    config.cache_features = placeholder(bool)
    config.optimizer.name = placeholder(str)
    config.optimizer.weight_decay = placeholder(float)
    return config
