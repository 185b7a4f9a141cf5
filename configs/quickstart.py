"""The whole of pretraining in about a minute on a CPU, on data that needs no download.

    python main.py --config=configs/quickstart.py

A 0.5 M parameter MAE on scikit-learn's 8x8 digits, patch 2, three quarters hidden. Ends with the
accuracy of the frozen encoder beside that of the same encoder untrained (README.md has the
figures), a reconstruction picture and a checkpoint.
"""

from configs import default


def get_config():
    config = default.get_config()
    config.batch_size = 256
    config.num_epochs = 300.0
    config.image_size = (8, 8)

    config.model.variant = 'vit_tiny'
    config.model.patch_size = 2
    config.model.width = 96
    config.model.depth = 4
    config.model.heads = 4
    config.model.decoder_width = 48
    config.model.decoder_depth = 1
    config.model.decoder_heads = 4
    config.model.dtype = 'float32'
    config.target.name = 'pixel'  # most patches of a digit are flat: nothing to normalise by

    config.dataset.name = 'digits'
    config.dataset.channels = 1
    config.dataset.mean = (0.305,)
    config.dataset.std = (0.376,)
    config.dataset.crop_scale = (0.6, 1.0)
    config.dataset.eval_crop_share = 1.0
    config.dataset.flip = False  # a mirrored digit is another digit
    config.optimizer.base_lr = 1e-3
    config.optimizer.warmup_epochs = 20.0

    config.log_every_steps = 200
    config.eval_every_steps = 400
    config.eval_examples = 360
    config.image_every_steps = 400
    config.checkpoint_every_steps = 400
    config.probe_at_end = True
    return config
