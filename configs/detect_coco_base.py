"""Detects the 80 classes of COCO by ViT-B/16, the recipe of ViTDet with Mask R-CNN.

    python main.py --config=configs/detect_coco_base.py --config.init_from=runs/vit_base \
        --config.dataset.path=/path/to/coco

ViTDet (arXiv 2203.16527) has 51.6 box AP and 45.9 mask AP after 1600 epochs of pretraining.
"""

from mae_jax.configs import default, detect

EXAMPLES = 118_287


def get_config():
    config, imagenet = detect.get_config(), default.get_config()
    config.batch_size = 64
    config.num_steps = 184_375  # 100 epochs
    config.image_size = (1024, 1024)
    config.num_classes = 80
    config.eval_every_steps = 18_000
    config.checkpoint_every_steps = 2000

    model = config.model
    model.variant = 'vit_base'
    model.drop_path = 0.1
    model.window = 14
    model.global_blocks = (2, 5, 8, 11)
    model.remat = 'block'

    dataset = config.dataset
    for field in ('channels', 'scale', 'mean', 'std'):
        dataset[field] = imagenet.dataset[field]
    dataset.flip = True

    optimizer = config.optimizer
    optimizer.base_lr = 1e-4 * 256 / config.batch_size
    optimizer.warmup_epochs = 250 * config.batch_size / EXAMPLES  # 250 steps
    optimizer.layer_decay = 0.7
    return config
