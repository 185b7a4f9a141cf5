"""Probes ViT-L/16 linearly on ImageNet-1k.

    python main.py --config=configs/linprobe_large.py --config.init_from=runs/vit_large

If a batch of 16384 does not fit, --config.optimizer.accumulate=8 gives the same result.
To expect: 75.8 % top-1 after 1600 epochs of pretraining.
"""

from mae_jax.configs import finetune, linprobe


def get_config():
    return linprobe.make_linprobe(finetune.imagenet('vit_large'))
