"""What a frozen encoder is worth: k-NN, a linear fit on all labels, and on a few of each class.

    python main.py --config=configs/knn.py --config.init_from=runs/folder

Nothing is trained but scikit-learn's classifiers, on the features of the training split; the
accuracies are those of the held-out split. Model, image size and data are those of the run that
`init_from` belongs to, unless given. Each evaluation adds a line to results.jsonl in the work
directory. With ImageNet's million images: --config.knn.linear=ridge.
"""

from ml_collections import ConfigDict

from configs import finetune


def get_config() -> ConfigDict:
    every, config = finetune.get_config(), ConfigDict()
    config.task = 'knn'
    config.batch_size = 256
    for field in ('seed', 'image_size', 'init_from', 'deterministic', 'mesh'):
        config[field] = (
            every.get_ref(field) if field in ('image_size', 'init_from') else every[field]
        )
    config.model = every.model
    for field in ('pool', 'drop_path', 'batch_norm', 'head_std'):
        del config.model[field]
    config.dataset = every.dataset
    trained = ('crop', 'crop_scale', 'crop_ratio', 'flip', 'augment', 'erase', 'workers')
    for field in (*trained, 'repeats', 'resize', 'canvas'):
        del config.dataset[field]

    config.knn = knn = ConfigDict()
    knn.pool = 'mean'  # of the patch tokens | cls
    knn.neighbours = 20  # the nearest by cosine, weighted by distance
    knn.linear = 'logistic'  # logistic | ridge
    knn.shots = (1, 10)  # labels a class of the few-shot fits, each the mean of five draws
    return config
