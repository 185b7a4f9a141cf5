"""A small detector, a batch it learns from, and one it is evaluated on."""

import numpy as np

from mae_jax.models.detection.detector import Detector
from mae_jax.models.detection.options import DetectorOptions
from mae_jax.models.options import EncoderOptions
from mae_jax.models.vit import Encoder
from mae_jax.tasks.detect import Detect

SIZE, PATCH, CLASSES, BOXES = 32, 8, 2, 3
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
OPTIONS = DetectorOptions(
    channels=8,
    anchor_sizes=(4.0, 8.0, 16.0, 24.0, 32.0),
    proposal_convolutions=1,
    anchor_samples=16,
    before_nms=12,
    before_nms_train=12,
    after_nms=10,
    roi_samples=8,
    box_size=3,
    mask_size=4,
    box_convolutions=1,
    mask_convolutions=1,
    box_width=12,
    score_threshold=0.0,
    detections=4,
)

FIELDS = {
    'image_size': (64, 64),
    'batch_size': 8,
    'num_steps': 6,
    'log_every_steps': 1,
    'eval_every_steps': 3,
    'image_every_steps': 3,
    'checkpoint_every_steps': 3,
    'model.variant': 'vit_tiny',
    'model.patch_size': 8,
    'model.width': 16,
    'model.depth': 2,
    'model.heads': 2,
    'model.dtype': 'float32',
    'model.channels': 8,
    'model.anchor_sizes': (8.0, 16.0, 32.0, 64.0, 128.0),
    'model.proposal_convolutions': 1,
    'model.anchor_samples': 32,
    'model.before_nms': 20,
    'model.before_nms_train': 20,
    'model.after_nms': 16,
    'model.roi_samples': 16,
    'model.box_convolutions': 1,
    'model.mask_convolutions': 1,
    'model.box_width': 16,
    'model.detections': 8,
    'dataset.channels': 3,
    'dataset.scale': 255.0,
    'dataset.mean': (0.5, 0.5, 0.5),
    'dataset.std': (0.25, 0.25, 0.25),
    'dataset.max_boxes': 6,
    'dataset.threads': 2,
    'optimizer.base_lr': 0.03,
    'optimizer.warmup_epochs': 0.0,
}
"""Of runs of six steps on scenes of 64 pixels, as `configs/detect.py` has them."""


def as_flags(fields: dict) -> tuple[str, ...]:
    """{'image_size': (64, 64)} -> ('--config.image_size=64,64',)."""
    texts = {k: ','.join(map(str, v)) if isinstance(v, tuple) else v for k, v in fields.items()}
    return tuple(f'--config.{name}={text}' for name, text in texts.items())


def make_task(drop: float = 0.0, depth: int = 2, frozen: int = 0, **fields) -> Detect:
    """Two blocks on images of 4 x 4 patches."""
    options = EncoderOptions(relative_positions='vitdet', cls_token=False)
    encoder = Encoder(PATCH, 16, depth, 2, frozen_blocks=frozen, options=options)
    model = Detector(encoder, CLASSES, OPTIONS, drop_path=drop)
    colours = ((250, 0, 0), (0, 0, 250))
    fields = dict(names=('disc', 'square'), colours=colours) | fields
    return Detect(model, CLASSES, (SIZE, SIZE), BOXES, mean=MEAN, std=STD, **fields)


def training_batch(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Images of several sizes with up to three objects, the first with none."""
    rng = np.random.default_rng(seed)
    batch = images(count, seed) | {
        'boxes': np.zeros((count, BOXES, 4), np.float32),
        'classes': np.full((count, BOXES), -1, np.int32),
        'masks': rng.integers(0, 2, (count, BOXES, 112, 112), np.uint8),
        'label': np.full(count, -1, np.int32),
    }
    for row, (height, width) in enumerate(batch['size']):
        for number in range(row % (BOXES + 1)):
            x, y = rng.uniform(0, 0.5, 2) * (width, height)
            w, h = rng.uniform(0.2, 0.5, 2) * (width, height)
            batch['boxes'][row, number] = x, y, x + w, y + h
            batch['classes'][row, number] = rng.integers(CLASSES)
    return batch


def images(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise in the whole array, also where the image is padded."""
    rng = np.random.default_rng((seed, 1))
    return {
        'image': rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8),
        'size': rng.integers(18, SIZE + 1, (count, 2)).astype(np.int32),
    }
