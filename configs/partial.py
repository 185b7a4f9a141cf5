"""Partial fine-tuning (arXiv 2111.06377, Figure 9): the last blocks learn, those before are frozen.

    python main.py --config=configs/partial.py --config.init_from=runs/folder --config.trained=4

`trained` is the number of blocks: 0 (the last norm and the head), 0.5 (and the MLP of the last
block), 1, 2, 4 ... all of them. Frozen blocks cost neither gradient nor optimiser memory. The
recipe is the paper's Table 9; its figure shows the best of 50, 100 and 200 epochs for each number
of blocks. What is unset is that of the run `init_from` belongs to.
"""

from configs import finetune


def make_partial(config):
    """The paper's own fine-tuning recipe, with the last block learning."""
    config.num_epochs = 50.0
    config.trained = '1'
    config.model.drop_path = 0.1
    config.optimizer.min_lr = 0.0
    return config


def get_config():
    return make_partial(finetune.get_config())
