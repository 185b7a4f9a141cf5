"""Segments ADE20K by ViT-L/16 and UperNet.

    python main.py --config=configs/segment_ade20k_large.py --config.init_from=runs/vit_large \
        --config.dataset.path=/path/to/ADEChallengeData2016

The paper's Table 5 has 53.6 mIoU after 1600 epochs of pretraining. Learning rate, drop path and
layer decay of ViT-L are not published; those here are in use elsewhere.
"""

from mae_jax.configs import segment_ade20k_base


def get_config():
    config = segment_ade20k_base.get_config()
    config.model.variant = 'vit_large'
    config.model.drop_path = 0.2
    config.optimizer.base_lr = 9e-5 * 256 / config.batch_size
    config.optimizer.layer_decay = 0.8
    return config
