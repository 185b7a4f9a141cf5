"""Trains ViT-L/16 on ImageNet-1k from scratch: the paper's supervised baseline (its Table 11).

    python main.py --config=configs/scratch_large.py

The running average of the parameters is evaluated. To expect: 82.6 % top-1 (arXiv 2111.06377,
Table 3).
"""

from mae_jax.configs import finetune


def make_scratch(config):
    """Changes a fine-tuning config into training from scratch, and returns it."""
    config.batch_size = 4096
    config.num_epochs = 200.0
    config.ema_decay = 0.9999
    config.dataset.erase = 0.0
    optimizer = config.optimizer
    optimizer.b2 = 0.95
    optimizer.base_lr = 1e-4
    optimizer.min_lr = 0.0
    optimizer.weight_decay = 0.3
    optimizer.warmup_epochs = 20.0
    optimizer.layer_decay = 1.0
    return config


def get_config():
    return make_scratch(finetune.imagenet('vit_large'))
