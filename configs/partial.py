"""Fine-tunes the last blocks and freezes those before them (arXiv 2111.06377, Figure 9).

    python main.py --config=configs/partial.py --config.init_from=runs/folder --config.trained=4

`trained` is the number of trained blocks: 0 (only the last norm and the head), 0.5 (also the MLP of
the last block), 1, 2, 4 ... up to all. Frozen blocks need no memory for gradients and optimiser.
The recipe is the paper's Table 9; its figure shows the best of 50, 100 and 200 epochs for each
number of blocks. Unset fields are taken from the run that `init_from` belongs to, or chosen from
the number of training images as in finetune.py; partial_base, _large and _huge define all.
"""

from mae_jax.configs import finetune


def make_partial(config):
    """Changes the paper's fine-tuning config into its partial one, with one trained block."""
    config.trained = '1'
    config.model.drop_path = 0.1
    config.optimizer.min_lr = 0.0
    return config


def get_config():
    config = finetune.get_config()
    config.trained = '1'
    config.optimizer.min_lr = 0.0
    return config
