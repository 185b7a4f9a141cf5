"""Lists the ablations of a suite, and the fields that all of its runs share.

    mae-jax ablate --suite=configs/ablation_suite.py:small --out=runs/ablations \
        --set dataset.path=/path/to/images

| suite            | what it runs                                                             |
|------------------|--------------------------------------------------------------------------|
| table            | Table 1 of the paper, 19 runs of ViT-L on ImageNet                       |
| mask_ratio       | its Figure 5                                                             |
| length           | its Figure 7                                                             |
| small            | Table 1 at the size of a laptop: photographs in a folder, 48 x 48 pixels |
| small_mask_ratio | Figure 5 at the size of a laptop                                         |
| small_length     | Figure 7 at the size of a laptop, with 1/160 of the epochs               |

To define another suite, write a file with a `get_suite` function like the one below.
"""

from ml_collections import ConfigDict

from mae_jax.configs import ablations

TABLE = tuple(name for name, row in ablations.ROWS.items() if row.table.startswith('1'))
MASK_RATIO = tuple(name for name in ablations.ROWS if name.startswith('mask_ratio_'))
LENGTH = tuple(name for name in ablations.ROWS if name.startswith('epochs_'))

SMALL = {
    'model.dtype': 'float32',
    'batch_size': 64,
    'dataset.threads': 1,
    'log_every_steps': 50,
    'keep_last': 1,
}

SMALL_PRETRAIN = SMALL | {
    'num_epochs': 5.0,
    'image_size': (48, 48),
    'model.variant': 'vit_tiny',
    'model.patch_size': 8,
    'model.width': 64,
    'model.depth': 4,
    'model.heads': 2,
    'model.decoder_width': 32,
    'model.decoder_depth': 4,
    'model.decoder_heads': 2,
    'dataset.name': 'folder',
    'optimizer.base_lr': 6e-3,
    'optimizer.warmup_epochs': 0.5,
    'eval_every_steps': 0,
    'image_every_steps': 0,
    'checkpoint_every_steps': 1000,
}

SMALL_FINETUNE = SMALL | {
    # A few epochs leave no time for strong regularisation.
    'num_epochs': 2.0,
    'model.drop_path': 0.0,
    'mix.mixup': 0.0,
    'mix.cutmix': 0.0,
    'dataset.augment': '',
    'dataset.erase': 0.0,
    'dataset.crop_scale': (0.35, 1.0),
    'optimizer.base_lr': 6e-3,
    'optimizer.warmup_epochs': 0.25,
}

SMALL_LINPROBE = SMALL | {
    'cache_features': True,
    'batch_size': 1024,
    'num_epochs': 90.0,
    'optimizer.base_lr': 1.0,
}

SMALL_CHANGES = {
    # Depths in the paper's order, but shallower; a sixteenth of its widths; fewer epochs.
    **{
        f'decoder_depth_{paper}': {'model.decoder_depth': depth}
        for paper, depth in ((1, 1), (2, 2), (4, 3), (8, 4), (12, 6))
    },
    **{
        f'decoder_width_{width}': {'model.decoder_width': width // 16}
        for width in (128, 256, 512, 768, 1024)
    },
    **{f'epochs_{n}': {'num_epochs': n / 160} for n in (100, 200, 400, 800, 1600)},
    # A tokenizer that needs no weights of another model.
    'target_dvae': {
        'target.tokenizer': 'benchmarks.color_tokens:color_tokens',
        'target.codes': 512,
    },
    'target_pca': {'target.components': 24},
}

ROWS = {'table': TABLE, 'mask_ratio': MASK_RATIO, 'length': LENGTH}


def get_suite(name: str = 'table') -> ConfigDict:
    """Returns the suite of this name, a config with these fields.

    rows: names of rows of configs/ablations.py.
    seeds: seeds to run each row with.
    pretrain, linprobe, finetune: field -> value, for every run of the stage.
    changes: row -> field -> value, for rows whose fields differ from those at the paper's size.

    Raises:
      ValueError: the name is not in the table above.
    """
    small = name == 'small' or name.startswith('small_')
    rows = ROWS.get('table' if name == 'small' else name.removeprefix('small_'))
    if rows is None:
        names = ', '.join((*ROWS, 'small', 'small_mask_ratio', 'small_length'))
        raise ValueError(f'ablation_suite.py:{name} is unknown: choose {names}.')
    suite = ConfigDict(convert_dict=False)  # plain dicts: the names of fields contain dots
    suite.rows = rows
    suite.seeds = (0,)
    suite.pretrain = SMALL_PRETRAIN if small else {}
    suite.linprobe = SMALL_LINPROBE if small else {}
    suite.finetune = SMALL_FINETUNE if small else {}
    suite.changes = SMALL_CHANGES if small else {}
    return suite
