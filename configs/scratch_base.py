"""Trains ViT-B/16 on ImageNet-1k from scratch: the paper's supervised baseline (its Table 11).

    python main.py --config=configs/scratch_base.py

To expect: 82.3 % top-1 (arXiv 2111.06377, Table 3).
"""

from mae_jax.configs import finetune, scratch_large


def get_config():
    config = scratch_large.make_scratch(finetune.imagenet('vit_base'))
    config.num_epochs = 300.0
    config.model.drop_path = 0.1
    return config
