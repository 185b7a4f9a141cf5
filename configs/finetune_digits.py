"""Fine-tunes the encoder of quickstart.py, in under a minute on a CPU.

    python main.py --config=configs/finetune_digits.py --config.init_from=runs/quickstart

Without `init_from` the same recipe trains from scratch.
"""

from mae_jax.configs import finetune, quickstart


def get_config():
    config, pretraining = finetune.get_config(), quickstart.get_config()
    config.batch_size = 64
    config.num_epochs = 20.0
    config.image_size = pretraining.image_size
    for field in ('variant', 'patch_size', 'width', 'depth', 'heads', 'dtype'):
        config.model[field] = pretraining.model[field]
    config.model.drop_path = 0.0
    for field in ('name', 'channels', 'scale', 'mean', 'std', 'crop_scale', 'eval_crop_share'):
        config.dataset[field] = pretraining.dataset[field]
    config.dataset.flip = False  # a mirrored digit is another digit
    config.dataset.augment = ''  # RandAugment rotates, and a rotated 6 is a 9
    config.dataset.erase = 0.0
    config.mix.mixup = config.mix.cutmix = 0.0
    config.dataset.threads = 2
    config.optimizer.base_lr = 4e-3
    config.optimizer.warmup_epochs = 2.0
    config.log_every_steps = 50
    config.eval_every_steps = 110
    config.checkpoint_every_steps = 110
    return config
