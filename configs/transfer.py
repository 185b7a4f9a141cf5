"""Fine-tunes on the paper's other classification data sets (arXiv 2111.06377, Table 6).

    python main.py --config=configs/transfer.py:inaturalist2018 --config.init_from=runs/vit_large

| argument        | read from                       | ViT-B | ViT-L | ViT-H | at 448 |
|-----------------|---------------------------------|-------|-------|-------|--------|
| inaturalist2017 | a folder: --config.dataset.path | 70.5  | 75.7  | 79.3  | 83.4   |
| inaturalist2018 | TFDS, i_naturalist2018          | 75.4  | 80.1  | 83.0  | 86.8   |
| inaturalist2019 | a folder: --config.dataset.path | 80.5  | 83.4  | 85.7  | 88.3   |
| places205       | a folder: --config.dataset.path | 63.9  | 65.8  | 65.9  | 66.8   |
| places365       | TFDS, places365_small           | 57.9  | 59.4  | 59.8  | 60.3   |

The figures are the paper's top-1. The paper does not publish the recipe: this is its fine-tuning on
ImageNet (Table 9), as a starting point. The number of classes is read from the data, architecture
and image size from the run of `init_from`. For any other data set use configs/finetune.py with
--config.dataset.name, a TFDS name or `folder`.
"""

from mae_jax.configs import finetune

TFDS = {'inaturalist2018': 'i_naturalist2018', 'places365': 'places365_small'}
FOLDERS = ('inaturalist2017', 'inaturalist2019', 'places205')


def get_config(name: str = 'inaturalist2018'):
    if name not in TFDS and name not in FOLDERS:
        raise ValueError(f'transfer.py:{name} is unknown: choose {", ".join((*TFDS, *FOLDERS))}.')
    config = finetune.paper()
    config.num_epochs = 100.0
    config.dataset.name = TFDS.get(name, 'folder')
    return config
