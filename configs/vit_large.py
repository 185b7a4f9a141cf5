"""Pretrains ViT-L/16 on ImageNet-1k as published: 800 epochs, batch 4096, normalised pixels.

    python main.py --config=configs/vit_large.py

Hardware: the paper's authors used 128 TPU v3 cores (15.4 hours for 800 epochs, their Table 2).
On smaller machines --config.optimizer.accumulate=8 keeps the batch size.
To expect after fine-tuning: 85.4-85.5 % top-1 (85.9 with --config.num_epochs=1600).
"""

from mae_jax.configs import default


def get_config():
    return default.get_config()
