"""Measures k-NN and a linear probe after every block of an encoder, none of it trained.

    mae-jax ablate --suite=probe_blocks --out=runs/probe_blocks --config.init_from=runs/folder

The last blocks of an encoder that was trained to predict serve the prediction: earlier ones may
hold better features. Each row is a run of configs/knn.py with another `probe_block`; `plot.png` has
the curve over blocks. Fields of that config may be changed: --config.dataset.path=/path/to/images,
--config.knn.pool=cls, for millions of images --config.knn.linear=ridge.
"""

from ml_collections import ConfigDict


def get_suite() -> ConfigDict:
    """Returns the suite, a config with these fields.

    blocks: numbers of blocks, 0 the first; empty for all of the encoder.
    seeds: seeds to run each row with; nothing is drawn but few-shot sets.
    probe: field of configs/knn.py -> value, for every run.
    """
    suite = ConfigDict(convert_dict=False)  # plain dicts: the names of fields contain dots
    suite.blocks = ()
    suite.seeds = (0,)
    suite.probe = {'knn.shots': ()}
    return suite
