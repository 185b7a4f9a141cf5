"""Pretrains ViT-B/16 on ImageNet-1k: 800 epochs, batch 4096, normalised pixels.

    python main.py --config=configs/vit_base.py

Hardware: at least one node of 8 accelerators. 58 GFLOP per image, forward and backward.
To expect after fine-tuning: 83.3 % top-1 (83.6 with --config.num_epochs=1600); linear probe 65.1.
"""

from mae_jax.configs import default


def get_config():
    config = default.get_config()
    config.model.variant = 'vit_base'
    return config
