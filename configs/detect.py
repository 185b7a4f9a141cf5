"""Detects objects by a pretrained encoder: boxes, classes and masks (ViTDet with Mask R-CNN).

    python main.py --config=configs/detect.py --config.init_from=runs/folder \
        --config.image_size=512 --config.dataset.path=/path/to/data

The data are images and a JSON file in COCO's format: `annotations/instances_train*.json` with
`train*/`, `train/_annotations.coco.json`, one `.json` for all, or `dataset.annotations`. Classes
are its categories. Without annotations for evaluation, some images are held out.

Unset fields are taken from the run that `init_from` belongs to, or chosen from the number of
training images (mae_jax/config/recipe.py). An `image_size` above that of pretraining finds smaller
objects; for 1024 pixels give `model.window=14` and `model.global_blocks` too, as detect_coco_base,
_large and _huge do, the recipe of COCO.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mae_jax.configs import finetune

CROPS = ('crop', 'crop_scale', 'crop_ratio', 'eval_crop_share', 'resize', 'canvas')


def get_config() -> ConfigDict:
    config = finetune.get_config()
    for field in ('cache_features', 'label_smoothing', 'mix'):
        del config[field]
    for field in ('pool', 'batch_norm', 'head_std'):
        del config.model[field]
    for field in ('erase', *CROPS):
        del config.dataset[field]
    config.task = 'detect'
    config.eval_every_steps = 2000
    config.checkpoint_every_steps = 1000
    config.image_every_steps = 2000  # image | detections; 0: never
    config.per_class = True  # write the AP of every class when the run ends

    model = config.model
    model.drop_path = 0.1
    model.cls_token = False
    model.relative_positions = 'vitdet'
    model.channels = 256  # of the pyramid's maps and of the convolutions on them
    model.anchor_sizes = (32.0, 64.0, 128.0, 256.0, 512.0)  # in pixels, one for each map
    model.anchor_ratios = (0.5, 1.0, 2.0)  # height to width
    model.proposal_convolutions = 2  # before the objectness of anchors
    model.anchor_thresholds = (0.3, 0.7)  # IoU: background below, positive from
    model.anchor_samples = 256  # of an image, in the loss ...
    model.anchor_positives = 0.5  # ... of which so many are positive, at most
    model.before_nms = 1000  # proposals of each map, in evaluation ...
    model.before_nms_train = 2000  # ... and in training
    model.after_nms = 1000  # proposals of an image
    model.proposal_nms = 0.7  # IoU above which a proposal suppresses another
    model.roi_threshold = 0.5  # IoU with a box from which a proposal is foreground
    model.roi_samples = 512  # proposals of an image, in the losses ...
    model.roi_positives = 0.25  # ... of which so many are foreground, at most
    model.box_size = 7  # cells a side that are cut for a box ...
    model.mask_size = 14  # ... and for a mask
    model.box_convolutions = 4
    model.mask_convolutions = 4
    model.box_width = 1024  # of the box head's dense layer
    model.box_weights = (10.0, 10.0, 5.0, 5.0)  # factors of x, y, width, height in the targets
    model.score_threshold = 0.05  # detections have scores above it
    model.detection_nms = 0.5  # IoU above which a detection suppresses another of its class
    model.detections = 100  # of an image, at most

    dataset = config.dataset
    dataset.name = 'coco'
    dataset.annotations = placeholder(str)  # a JSON file in dataset.path; '{split}.json': one each
    dataset.max_boxes = 100  # objects of an image in training; of more, the largest
    dataset.jitter = (0.1, 2.0)  # training: images fit into image_size times a factor from here
    dataset.apply_exif = True  # annotations are of upright images, mostly
    dataset.augment = ''  # photometric | jitter-b0.4-c0.4-s0.4-h0.1

    optimizer = config.optimizer
    optimizer.schedule = 'steps'  # cosine | linear | steps: the rate falls to a tenth at each ...
    optimizer.drop_at = (8 / 9, 26 / 27)  # ... of these shares of the run
    optimizer.warmup_from = 0.001  # of the peak: where the warm-up begins
    optimizer.min_lr = 0.0
    optimizer.weight_decay = 0.1
    optimizer.layer_decay = 0.7
    return config
