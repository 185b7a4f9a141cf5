"""Probes ViT-B/16 linearly on ImageNet-1k.

    python main.py --config=configs/linprobe_base.py --config.init_from=runs/vit_base

If a batch of 16384 does not fit, --config.optimizer.accumulate=8 gives the same result.
To expect: 68.0 % top-1 after 1600 epochs of pretraining (65.1 after 800).
"""

from mae_jax.configs import finetune, linprobe


def get_config():
    config = linprobe.make_linprobe(finetune.imagenet('vit_base'))
    config.num_epochs = 90.0
    return config
