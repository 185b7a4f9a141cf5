"""Fine-tunes the last blocks of ViT-H/14 on ImageNet-1k.

    python main.py --config=configs/partial_huge.py --config.init_from=runs/vit_huge \
        --config.trained=4

The paper has no figure for ViT-H.
"""

from mae_jax.configs import finetune, partial


def get_config():
    config = partial.make_partial(finetune.imagenet('vit_huge'))
    config.model.drop_path = 0.2
    return config
