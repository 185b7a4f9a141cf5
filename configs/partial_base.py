"""Fine-tunes the last blocks of ViT-B/16 on ImageNet-1k.

    python main.py --config=configs/partial_base.py --config.init_from=runs/vit_base \
        --config.trained=4

The paper has no figure for ViT-B.
"""

from mae_jax.configs import finetune, partial


def get_config():
    return partial.make_partial(finetune.imagenet('vit_base'))
