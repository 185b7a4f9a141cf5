"""Pretrains a small ViT on a folder of your own images.

    python main.py --config=configs/folder.py --config.dataset.path=/path/to/images

The folder is `train/<class>/*.jpg` and `val/<class>/*.jpg` (or valid/, validation/, test/),
`<class>/*.jpg`, or any tree of unlabelled images; without val/, a twentieth is held out. JPEG, PNG,
WebP, AVIF, JPEG 2000, PPM, BMP, GIF, TIFF and .npy are read. For images that are not 8-bit RGB set
dataset.channels, .scale, and one value of .mean and .std per channel; .bands chooses some of their
bands, and .nodata is the value of missing pixels.

The size, 96 pixels, suits one GPU, or a laptop with some patience. To expect: reconstructions in
images/latest.png show colours within the first epochs and edges later; a few thousand images need
several hundred epochs.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.batch_size = 256
    config.num_epochs = 400.0
    config.image_size = (96, 96)
    config.model.variant = 'vit_small'
    config.model.patch_size = 8
    config.model.decoder_width = 256
    config.model.decoder_depth = 4
    config.model.decoder_heads = 8
    config.dataset.name = 'folder'
    config.optimizer.warmup_epochs = 20.0
    config.log_every_steps = 20
    config.eval_every_steps = 500
    config.image_every_steps = 500
    config.checkpoint_every_steps = 500
    return config
