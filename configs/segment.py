"""Segments images by a pretrained encoder: a class for every pixel.

    python main.py --config=configs/segment.py --config.init_from=runs/folder \
        --config.dataset.path=/path/to/data
    python main.py --config=configs/segment.py:linear --config.init_from=runs/folder \
        --config.dataset.path=/path/to/data

The data are `images/<split>/` and `annotations/<split>/`, paired by the names of files without
their suffix. A mask is a PNG of one band or with a palette, whose pixels are numbers of classes.
Classes are named in `classes.txt` beside these folders, one a line (`road`, or `road 128 64 128`
with its colour), or counted by `num_classes`.

| argument | head | encoder |
|---|---|---|
| upernet (default) | UperNet and an auxiliary FCN | fine-tuned (`trained`: in part or not) |
| linear | BatchNorm and one dense layer | frozen: a probe that runs on a CPU |

Unset fields are taken from the run that `init_from` belongs to, or chosen from the number of
training images (mae_jax/config/recipe.py). segment_ade20k_base and _large are the paper's recipe.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mae_jax.configs import finetune

HEADS = ('upernet', 'linear')
CROPS = ('crop', 'crop_scale', 'crop_ratio', 'eval_crop_share', 'resize', 'canvas')


def get_config(head: str = 'upernet') -> ConfigDict:
    if head not in HEADS:
        raise ValueError(f'segment.py:{head} is unknown: choose {" or ".join(HEADS)}.')
    config = finetune.get_config()
    for field in ('cache_features', 'label_smoothing', 'mix', 'probe_block'):  # taps instead
        del config[field]
    for field in ('pool', 'batch_norm', 'head_std'):
        del config.model[field]
    for field in ('erase', *CROPS):
        del config.dataset[field]
    config.task = 'segment'
    config.eval_every_steps = 500
    config.checkpoint_every_steps = 500
    config.image_every_steps = 500  # image | truth | prediction; 0: never
    config.per_class = True  # write the IoU of every class when the run ends
    config.inference = 'slide'  # windows of image_size | whole: the image, squeezed to image_size
    config.stride = placeholder(int)  # of windows, in pixels; unset: 2/3 of their side

    model = config.model
    model.head = head  # upernet | linear
    model.taps = placeholder(tuple)  # unset: blocks at 1/3, 1/2, 2/3, the last; linear: the last
    model.drop_path = 0.1
    model.head_width = placeholder(int)  # upernet: channels; unset: width of the encoder
    model.head_dropout = 0.1  # upernet: of channels, before the last layer
    model.auxiliary_weight = 0.4  # upernet: of the auxiliary head's loss; 0: no such head
    model.auxiliary_width = 256  # its channels ...
    model.auxiliary_tap = 2  # ... and which of the taps it sees, counted from 0

    dataset = config.dataset
    dataset.name = 'paired_folders'
    dataset.classes = placeholder(str)  # a file of class names; unset: classes.txt in dataset.path
    dataset.ignored = (255,)  # values of the masks that are no class
    dataset.reduce_zero_label = False  # 0 is no class either, and class 0 has the value 1
    dataset.short_side = placeholder(int)  # images are resized to it; unset: that of image_size
    dataset.long_side = placeholder(int)  # at most; unset: 4 times short_side
    dataset.resize_ratio = (0.5, 2.0)  # training: both sides are multiplied by a factor from here
    dataset.max_class_share = 0.75  # training: of a class in a crop, in 10 tries; 1: any crop
    dataset.augment = 'photometric'  # photometric | jitter-b0.4-c0.4-s0.4-h0.1

    optimizer = config.optimizer
    optimizer.schedule = 'linear'
    optimizer.min_lr = 0.0
    optimizer.layer_decay = 0.65
    return linear(config) if head == 'linear' else config


def linear(config: ConfigDict) -> ConfigDict:
    """Changes a config into a linear probe of every patch of a frozen encoder."""
    config.trained = 'head'
    config.model.drop_path = 0.0
    config.model.head_dropout = 0.0
    config.model.auxiliary_weight = 0.0
    config.optimizer.layer_decay = 1.0
    return config
