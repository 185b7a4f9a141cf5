"""Detects the 80 classes of COCO by ViT-L/16.

    python main.py --config=configs/detect_coco_large.py --config.init_from=runs/vit_large \
        --config.dataset.path=/path/to/coco

ViTDet (arXiv 2203.16527) has 55.6 box AP and 49.2 mask AP after 1600 epochs of pretraining.
"""

from mae_jax.configs import detect_coco_base


def get_config():
    config = detect_coco_base.get_config()
    config.model.variant = 'vit_large'
    config.model.drop_path = 0.4
    config.model.global_blocks = (5, 11, 17, 23)
    config.optimizer.layer_decay = 0.8
    return config
