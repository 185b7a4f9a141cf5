"""Trains ViT-H/14 on ImageNet-1k from scratch: the paper's supervised baseline (its Table 11).

    python main.py --config=configs/scratch_huge.py

To expect: 83.1 % top-1 (arXiv 2111.06377, Table 3).
"""

from mae_jax.configs import finetune, scratch_large


def get_config():
    return scratch_large.make_scratch(finetune.imagenet('vit_huge'))
