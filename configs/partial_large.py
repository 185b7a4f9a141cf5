"""Fine-tunes the last blocks of ViT-L/16 on ImageNet-1k.

    python main.py --config=configs/partial_large.py --config.init_from=runs/vit_large \
        --config.trained=4

To expect (the best of 50, 100 and 200 epochs): 73.5 % top-1 with 0 blocks, 81.0 with 1.
"""

from mae_jax.configs import finetune, partial


def get_config():
    return partial.make_partial(finetune.imagenet('vit_large'))
