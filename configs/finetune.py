"""Fine-tunes a pretrained encoder; defines every field of a classification run.

    python main.py --config=configs/finetune.py --config.init_from=runs/folder \
        --config.dataset.path=/path/to/images

`init_from` is a work directory of pretraining, or one of its checkpoints. Fields that are unset
below are taken from the config of that run (architecture, image size, data set and its statistics)
or chosen from the number of training images (batch size, epochs, learning rate, warm-up, strength
of augmentation: mae_jax/config/recipe.py has the rule, and the run prints what it chose). The
others are the recipe of ViT-L on ImageNet ("Masked Autoencoders Are Scalable Vision Learners",
arXiv 2111.06377, appendix A.1, and its official code), which finetune_base, _large and _huge define
in full.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mae_jax.configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    for field in (
        'mask',
        'target',
        'max_images_seen',
        'image_every_steps',
        'probe_at_end',
        'online_probe',
    ):
        del config[field]
    config.task = 'classify'
    config.batch_size = placeholder(int)
    config.num_epochs = placeholder(float)
    config.image_size = placeholder(tuple)
    config.num_classes = placeholder(int)  # unset: that of the data set
    config.probe_block = -1  # features after this block of init_from, 0 the first; -1: the last
    config.trained = 'all'  # all | head | the last k blocks and all after them: 0, 0.5, 1, ...
    config.cache_features = False  # trained=head: run the encoder once, without augmentation
    config.ema_decay = placeholder(float)  # evaluate an average of the parameters
    config.label_smoothing = 0.1
    config.per_class = False  # write the accuracy of every class when the run ends

    model = config.model
    for field in ('decoder_width', 'decoder_depth', 'decoder_heads', 'encoder_mask_tokens'):
        del model[field]
    model.variant = placeholder(str)
    model.pool = 'mean'  # mean of the patch tokens, with a norm of its own | cls token
    model.drop_path = placeholder(float)  # of the last block; rises linearly from 0
    model.batch_norm = False  # before the head, without affine
    model.head_std = 2e-5
    # Unset, the next seven are those of init_from, or else as in the original MAE.
    model.relative_positions = placeholder(str)  # none | beit: bias for offsets | vitdet: no cls
    model.layer_scale = placeholder(float)  # first factor of what a block adds, for each channel
    model.key_bias = placeholder(bool)  # unset: True; False: as in BEiT
    model.absolute_positions = placeholder(bool)  # unset: True
    model.cls_token = placeholder(bool)  # unset: True
    model.window = placeholder(int)  # side of attention's windows in patches; unset: 0, none
    model.global_blocks = placeholder(tuple)  # (2, 5, 8, 11): blocks without windows

    config.mix = mix = ConfigDict()  # one draw for every 32 rows; 0 and 0: no mixing
    mix.mixup = placeholder(float)
    mix.cutmix = placeholder(float)
    mix.switch_probability = 0.5  # cutmix instead of mixup

    dataset = config.dataset
    dataset.name = placeholder(str)
    dataset.channels = placeholder(int)
    dataset.scale = placeholder(float)
    dataset.mean = placeholder(tuple)
    dataset.std = placeholder(tuple)
    dataset.flip = placeholder(bool)
    dataset.crop_scale = placeholder(tuple)
    dataset.augment = placeholder(str)
    dataset.erase = placeholder(float)  # probability of random erasing

    optimizer = config.optimizer
    optimizer.b2 = 0.999
    optimizer.base_lr = placeholder(float)
    optimizer.min_lr = 1e-6
    optimizer.warmup_epochs = placeholder(float)
    optimizer.momentum = 0.9  # LARS only, as the next field
    optimizer.trust_coefficient = 0.001
    optimizer.layer_decay = 0.75  # ratio of a layer's learning rate to the next one's; 1: equal

    # Unset: once an epoch; with cache_features, when the run ends. 0: no evaluation.
    config.eval_every_steps = placeholder(int)
    config.checkpoint_every_steps = placeholder(int)
    config.eval_examples = placeholder(int)  # unset: all of them
    return config


def paper() -> ConfigDict:
    """Returns the recipe of ViT-L on ImageNet, for the model and the data of `init_from`."""
    config = get_config()
    config.batch_size = 1024
    config.num_epochs = 50.0
    config.optimizer.base_lr = 1e-3
    config.optimizer.warmup_epochs = 5.0
    config.model.drop_path = 0.2
    config.mix.mixup = 0.8
    config.mix.cutmix = 1.0
    config.dataset.flip = True
    config.dataset.crop_scale = (0.08, 1.0)
    config.dataset.augment = 'rand-m9-mstd0.5-inc1'
    config.dataset.erase = 0.25
    return config


def imagenet(variant: str) -> ConfigDict:
    """Returns the recipe on ImageNet-1k for one of the paper's models."""
    config, imagenet = paper(), default.get_config()
    config.image_size = imagenet.image_size
    config.model.variant = variant
    for field in ('name', 'channels', 'scale', 'mean', 'std'):
        config.dataset[field] = imagenet.dataset[field]
    return config
