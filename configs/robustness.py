"""Evaluates a fine-tuned classifier on images unlike those it was trained on (paper, appendix).

    python main.py --config=configs/robustness.py:imagenet_a --config.init_from=runs/finetune_base \
        --config.dataset.path=/data/imagenet-a

`mae-jax robustness runs/finetune_base --data /data/imagenet-a` is the same, and finds out by itself
which set the folder is. Nothing is trained. Each run writes table.md, plot.png (with matplotlib)
and results.json into its work directory; where it was stopped, the same command goes on.

| argument        | images                                   | ViT-B | ViT-L | ViT-H | at 448 |
|-----------------|------------------------------------------|-------|-------|-------|--------|
| imagenet_a      | <wnid>/, top-1 among its 200 classes     | 35.9  | 57.1  | 68.2  | 76.7   |
| imagenet_r      | <wnid>/, top-1 among its 200 classes     | 48.3  | 59.9  | 64.4  | 66.5   |
| imagenet_sketch | <wnid>/, top-1                           | 34.5  | 45.3  | 49.6  | 50.9   |
| imagenet_c      | <corruption>/<severity>/<wnid>/, mCE     | 51.7  | 41.8  | 33.8  | 36.8   |
| corruptions     | the run's held-out images, or other ones |       |       |       |        |

The figures are the paper's, in percent; of mCE, less is better. `corruptions` makes those of
ImageNet-C itself (pip install 'mae_jax[robustness]'), of the images that the run has held out or
of those in dataset.path with dataset.name=folder.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from mae_jax.configs import finetune

KINDS = ('imagenet_a', 'imagenet_r', 'imagenet_sketch', 'imagenet_c', 'corruptions')


def get_config(kind: str = 'corruptions') -> ConfigDict:
    if kind not in KINDS:
        raise ValueError(f'robustness.py:{kind} is unknown: choose {", ".join(KINDS)}.')
    base, config = finetune.get_config(), ConfigDict()
    config.task = 'robustness'
    config.batch_size = 256
    config.eval_examples = placeholder(int)  # of each set, evenly spread; unset: all of them
    config.init_from = base.get_ref('init_from')
    for field in ('seed', 'deterministic', 'mesh', 'connect_timeout_s', 'heartbeat_timeout_s'):
        config[field] = base[field]
    config.model = ConfigDict({field: base.model[field] for field in ('dtype', 'attention')})
    config.dataset = dataset = base.dataset
    training_only = ('crop', 'crop_scale', 'crop_ratio', 'flip', 'augment', 'erase')
    for field in (*training_only, 'repeats', 'resize', 'canvas', 'train_split'):
        del dataset[field]
    if kind != 'corruptions':
        dataset.name = 'folder'
        dataset.eval_split = '.'  # all images of the folder; of a TFDS data set: test

    config.robustness = robustness = ConfigDict()
    robustness.kind = kind  # the argument, as in the table above
    # unset: the names that the model has, else ImageNet's sorted wnids | imagenet: these | a file
    robustness.classes = placeholder(str)  # of the folder of each output, a line each
    return config
