"""Fine-tunes ViT-B/16 on ImageNet-1k with the official code's recipe.

    python main.py --config=configs/finetune_base.py --config.init_from=runs/vit_base

To expect: 83.6 % top-1 after 1600 epochs of pretraining (83.3 after 800).
"""

from mae_jax.configs import finetune


def get_config():
    config = finetune.imagenet('vit_base')
    config.num_epochs = 100.0
    config.model.drop_path = 0.1
    config.optimizer.base_lr = 5e-4
    config.optimizer.layer_decay = 0.65
    return config
