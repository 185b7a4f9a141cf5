"""Pretrains a small ViT on a folder of your own images.

    python main.py --config=configs/folder.py:laptop --config.dataset.path=/path/to/images
    python main.py --config=configs/folder.py --config.dataset.path=/path/to/images

The folder is `train/<class>/*.jpg` and `val/<class>/*.jpg` (or valid/, validation/, test/),
`<class>/*.jpg`, or any tree of unlabelled images; without val/, some are held out. JPEG, PNG, WebP,
AVIF, JPEG 2000, PPM, BMP, GIF, TIFF and .npy are read. For images that are not 8-bit RGB set
dataset.channels, .scale, and one value of .mean and .std per channel; .bands chooses some of their
bands, and .nodata is the value of missing pixels.

| argument | model | pixels | time |
|---|---|---|---|
| laptop | 1.3 M parameters, float32 | 64 | about 6 minutes on two cores, for any number of images |
| gpu (default) | 25 M parameters | 96 | up to some hours on a GPU, a day or more on a laptop |

Batch size, epochs, learning rate and warm-up are chosen from the number of images
(mae_jax/config/recipe.py has the rule, and the run prints what it chose). To expect:
reconstructions in images/latest.png show colours within the first epochs and edges later.
"""

from ml_collections.config_dict import placeholder

from mae_jax.configs import default

SIZES = ('laptop', 'gpu')


def get_config(size: str = 'gpu'):
    if size not in SIZES:
        raise ValueError(f'folder.py:{size} is unknown: choose {" or ".join(SIZES)}.')
    config = default.get_config()
    config.batch_size = placeholder(int)
    config.num_epochs = placeholder(float)
    config.optimizer.base_lr = placeholder(float)
    config.optimizer.warmup_epochs = placeholder(float)
    config.dataset.name = 'folder'
    config.log_every_steps = 20
    config.eval_every_steps = 500
    config.image_every_steps = 500
    config.checkpoint_every_steps = 500
    return laptop(config) if size == 'laptop' else gpu(config)


def laptop(config):
    config.image_size = (64, 64)
    config.max_images_seen = 120_000
    config.model.variant = 'vit_tiny'
    config.model.patch_size = 8
    config.model.width = 128
    config.model.depth = 6
    config.model.heads = 4
    config.model.decoder_width = 64
    config.model.decoder_depth = 2
    config.model.decoder_heads = 4
    config.model.dtype = 'float32'  # as fast as bfloat16 at this size, on any CPU
    config.eval_examples = 512
    return config


def gpu(config):
    config.image_size = (96, 96)
    config.model.variant = 'vit_small'
    config.model.patch_size = 8
    config.model.decoder_width = 256
    config.model.decoder_depth = 4
    config.model.decoder_heads = 8
    return config
