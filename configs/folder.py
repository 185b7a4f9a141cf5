"""A small ViT on a folder of one's own images.

    python main.py --config=configs/folder.py --config.dataset.path=/path/to/images

The folder is either `train/<class>/*.jpg` and `val/<class>/*.jpg`, or any tree of unlabelled
images, of which a twentieth is then held out. JPEG, PNG, WebP, BMP, TIFF and .npy; for images that
are not 8-bit RGB give dataset.channels, .scale, and .mean and .std, one value a channel.

Sized for one GPU, or for a laptop's patience at 96 pixels. To expect: the reconstructions in
images/latest.png get their colours within the first epochs and their edges later; a few thousand
images want several hundred epochs.
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
