"""Pretrains in about a minute on a CPU, on data that needs no download.

    python main.py --config=configs/quickstart.py

An MAE of 0.17 M parameters on scikit-learn's 8 x 8 digits, with patches of 2 x 2, half of them
hidden. The run ends with the accuracies of the frozen encoder, untrained and pretrained (README.md
has the figures), a reconstruction picture and a checkpoint.
"""

from mae_jax.configs import default


def get_config():
    config = default.get_config()
    config.batch_size = 64
    config.num_epochs = 75.0
    config.image_size = (8, 8)

    config.model.variant = 'vit_tiny'
    config.model.patch_size = 2
    config.model.width = 64
    config.model.depth = 3
    config.model.heads = 4
    config.model.decoder_width = 32
    config.model.decoder_depth = 1
    config.model.decoder_heads = 4
    config.model.dtype = 'float32'
    config.mask.ratio = 0.5  # an image is 16 patches: a quarter of them is too little to see
    config.target.name = 'pixel'  # most patches of a digit are uniform: their deviation is 0

    config.dataset.name = 'digits'
    config.dataset.channels = 1
    config.dataset.mean = (0.305,)
    config.dataset.std = (0.376,)
    config.dataset.crop_scale = (0.8, 1.0)
    config.dataset.eval_crop_share = 1.0
    config.dataset.threads = 2
    config.dataset.flip = False  # a mirrored digit is another digit
    config.optimizer.base_lr = 8e-3
    config.optimizer.warmup_epochs = 5.0

    config.log_every_steps = 200
    config.eval_every_steps = 800
    config.eval_examples = 360
    config.image_every_steps = 800
    config.checkpoint_every_steps = 800
    config.probe_at_end = True
    return config
