"""Segments ADE20K by ViT-B/16 and UperNet, the paper's recipe.

    python main.py --config=configs/segment_ade20k_base.py --config.init_from=runs/vit_base \
        --config.dataset.path=/path/to/ADEChallengeData2016

The paper's Table 5 has 48.1 mIoU after 1600 epochs of pretraining.
"""

from mae_jax.configs import default, segment

EXAMPLES = 20_210


def get_config():
    config, imagenet = segment.get_config(), default.get_config()
    config.batch_size = 16
    config.num_steps = 160_000
    config.image_size = (512, 512)
    config.num_classes = 150
    config.eval_every_steps = 16_000
    config.checkpoint_every_steps = 4000

    model = config.model
    model.variant = 'vit_base'
    model.relative_positions = 'beit'  # beside the absolute ones
    model.layer_scale = 1.0
    model.drop_path = 0.1

    dataset = config.dataset
    for field in ('channels', 'scale', 'mean', 'std'):
        dataset[field] = imagenet.dataset[field]
    dataset.flip = True
    dataset.reduce_zero_label = True
    dataset.short_side = 512
    dataset.long_side = 2048

    optimizer = config.optimizer
    optimizer.base_lr = 1e-4 * 256 / config.batch_size
    optimizer.warmup_epochs = 1500 * config.batch_size / EXAMPLES  # 1,500 steps
    optimizer.layer_decay = 0.65
    return config
