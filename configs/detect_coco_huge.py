"""Detects the 80 classes of COCO by ViT-H/16.

    python main.py --config=configs/detect_coco_huge.py --config.dataset.path=/path/to/coco \
        --config.init_from=mae_pretrain_vit_huge_p14to16.pth

The encoder has patches of 16 pixels, where MAE's has 14: ViTDet's authors publish this file with
resized ones, or pretrain with `--config.model.patch_size=16`.

ViTDet (arXiv 2203.16527) has 56.7 box AP and 50.1 mask AP after 1600 epochs of pretraining.
"""

from mae_jax.configs import detect_coco_base


def get_config():
    config = detect_coco_base.get_config()
    config.num_steps = 138_281  # 75 epochs
    config.model.variant = 'vit_huge'
    config.model.patch_size = 16
    config.model.drop_path = 0.5
    config.model.global_blocks = (7, 15, 23, 31)
    config.optimizer.layer_decay = 0.9
    return config
