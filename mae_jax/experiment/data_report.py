"""Describes how the data of a run were read, and warns of values that do not fit the config."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mae_jax.config.data import decoding
from mae_jax.config.model import statistics
from mae_jax.data.images.arrays import as_array
from mae_jax.data.images.decode import decode
from mae_jax.errors import UserError

SAMPLES = 3
"""Images that are looked at, evenly spread over the training split."""
PLAUSIBLE = 0.02, 20.0
"""Least and largest standard deviation of a band of normalised images of several colours."""


def describe_data(config: ConfigDict, source: Any, held_out: Any) -> list[str]:
    """Returns lines for the start of a run.

    Args:
      config: of the run.
      source, held_out: the training and the evaluation split. The attribute `reading` of a source,
        if it has one, is a sequence of remarks on what was read.
    """
    remarks = [remark for each in (source, held_out) for remark in getattr(each, 'reading', ())]
    return ['; '.join(dict.fromkeys(remarks))] * bool(remarks) + implausible_values(config, source)


def implausible_values(config: ConfigDict, source: Any) -> list[str]:
    """Returns a warning, if any, of images that `dataset.scale`, `.mean` and `.std` do not fit.

    Images that cannot be read are passed over: the loader handles them.
    """
    images = []
    for i in range(min(SAMPLES, len(source))):
        try:
            record = source[i * len(source) // SAMPLES if len(source) > SAMPLES else i]
            images.append(as_array(decode(record, **decoding(config.dataset))))
        except UserError:
            continue
    if not images:
        return []
    fields = statistics(config)
    scale, mean, std = (np.asarray(fields[name], float) for name in ('scale', 'mean', 'std'))
    dtype, largest = images[0].dtype, max(image.max() for image in images)
    if dtype.kind in 'ui' and dtype.itemsize > 1 and scale <= 255:
        return [
            f'warning: the images are {dtype} with values up to {largest:,}, and dataset.scale='
            f'{scale:g}: set it to the largest value that they can have, {np.iinfo(dtype).max} '
            'for all bits'
        ]
    spread = max(float(((image / scale - mean) / std).std((0, 1)).max()) for image in images)
    if spread > 1e-6 and not PLAUSIBLE[0] <= spread <= PLAUSIBLE[1]:
        return [
            f'warning: the images are {dtype} with values up to {largest:g}; after dataset.scale='
            f'{scale:g}, .mean and .std their standard deviation is {spread:.2g}, where about 1 is '
            'usual: check these fields'
        ]
    return []
