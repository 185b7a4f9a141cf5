"""What PyTorch (`make_optimizers.py`) and the tests build for themselves: parameters, gradients.

NumPy alone. The names are those of a classifier's parameters, the shapes are as small as can be.
"""

import numpy as np

STEPS_PER_EPOCH, WARMUP_EPOCHS, EPOCHS = 3, 2, 10
STEPS = EPOCHS * STEPS_PER_EPOCH

DEPTH, LAYER_DECAY = 2, 0.65
ADAMW = dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.3)
ADAMW_LR, ADAMW_MIN_LR = 0.05, 1e-6
CLASSIFIER = {
    'encoder/cls_token': (1, 1, 3),
    'encoder/pos_embed': (1, 5, 3),
    'encoder/patch_embed/kernel': (2, 3),
    'encoder/patch_embed/bias': (3,),
    'encoder/blocks/block_0/norm1/scale': (3,),
    'encoder/blocks/block_0/attention/qkv/kernel': (3, 9),
    'encoder/blocks/block_1/norm1/scale': (3,),
    'encoder/blocks/block_1/attention/qkv/kernel': (3, 9),
    'fc_norm/scale': (3,),
    'fc_norm/bias': (3,),
    'head/kernel': (3, 4),
    'head/bias': (4,),
}

LARS = {'lars': 0.0, 'lars_decay': 0.05}  # weight decay
LARS_LR, MOMENTUM, TRUST = 6.4, 0.9, 0.001
PROBE = {
    'head/kernel': (6, 5),
    'head/bias': (5,),
    'zeros/kernel': (3, 4),
    'unused/kernel': (4, 2),
    'filters/kernel': (2, 2, 3, 2),
}


def start(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """float32 parameters of every name, normal; 'zeros' are zeros."""
    rng = np.random.default_rng(0)
    drawn = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return drawn | {name: 0 * p for name, p in drawn.items() if name.startswith('zeros')}


def gradients(shapes: dict[str, tuple[int, ...]], step: int) -> dict[str, np.ndarray]:
    """float32 gradients of every name at a step, of a few hundredths; those of 'unused' are 0."""
    rng = np.random.default_rng((1, step))
    drawn = {name: rng.standard_normal(shape, np.float32) / 50 for name, shape in shapes.items()}
    return drawn | {name: 0 * g for name, g in drawn.items() if name.startswith('unused')}
