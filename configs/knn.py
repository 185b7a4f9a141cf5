"""Evaluates a frozen encoder: k-NN, a linear fit on all labels, and on a few labels per class.

    python main.py --config=configs/knn.py --config.init_from=runs/folder

Only scikit-learn's classifiers are trained, on the features of the training split; accuracies are
measured on the held-out split. Model, image size and data default to those of the run that
`init_from` belongs to. Each evaluation appends a line to results.jsonl in the work directory. For
ImageNet's million images use --config.knn.linear=ridge.
"""

from ml_collections import ConfigDict

from mae_jax.configs import finetune


def get_config() -> ConfigDict:
    base, config = finetune.get_config(), ConfigDict()
    config.task = 'knn'
    config.batch_size = 256
    for field in ('image_size', 'init_from', 'new_channels'):
        config[field] = base.get_ref(field)  # a placeholder
    config.probe_block = -1  # features after this block, 0 the first; -1: the last
    for field in ('seed', 'deterministic', 'mesh', 'connect_timeout_s', 'heartbeat_timeout_s'):
        config[field] = base[field]
    config.model = base.model
    for field in ('pool', 'drop_path', 'batch_norm', 'head_std'):
        del config.model[field]
    config.dataset = base.dataset
    training_only = ('crop', 'crop_scale', 'crop_ratio', 'flip', 'augment', 'erase')
    for field in (*training_only, 'repeats', 'resize', 'canvas'):
        del config.dataset[field]

    config.knn = knn = ConfigDict()
    knn.pool = 'mean'  # of the patch tokens | cls
    knn.neighbours = 20  # the nearest by cosine, weighted by distance
    knn.linear = 'logistic'  # logistic | ridge
    knn.shots = (1, 10)  # labels per class of the few-shot fits, each the mean of five draws
    return config
