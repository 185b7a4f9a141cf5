"""Pretrains ViT-H/14 on ImageNet-1k: 800 epochs, batch 4096, normalised pixels.

    python main.py --config=configs/vit_huge.py

Hardware: the paper's authors used 128 TPU v3 cores (34.5 hours for 800 epochs, their Table 2).
If memory is short: --config.model.remat=block, --config.mesh.fsdp=8.
To expect after fine-tuning (1600 epochs): 86.9 % top-1 at 224 pixels, 87.8 at 448.
"""

from mae_jax.configs import default


def get_config():
    config = default.get_config()
    config.model.variant = 'vit_huge'
    return config
