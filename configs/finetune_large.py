"""Fine-tunes ViT-L/16 on ImageNet-1k with the official code's recipe.

    python main.py --config=configs/finetune_large.py --config.init_from=runs/vit_large

To expect: 85.9 % top-1 after 1600 epochs of pretraining (85.4-85.5 after 800).
"""

from mae_jax.configs import finetune


def get_config():
    return finetune.imagenet('vit_large')
