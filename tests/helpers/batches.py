"""Evaluation batches as one list of rows."""

import numpy as np

from mae_jax.config.data import make_eval_batches, make_source_of


def eval_rows(config, source=None, processes=1, batch_size=4, **options):
    """Returns the rows of all batches, in the order of a global batch's rows."""
    source = source or make_source_of(config, 'validation')
    streams = []
    for rows in np.split(np.arange(batch_size), processes):
        made = make_eval_batches(config, source, batch_size=batch_size, rows=rows, **options)
        with made as batches:
            streams.append(list(batches))
    return [
        {name: batch[name][i] for name in batch}
        for parts in zip(*streams, strict=True)
        for batch in parts
        for i in range(len(batch['valid']))
    ]
