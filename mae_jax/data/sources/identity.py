"""The text by which a run recognises its data set when it is resumed."""

import hashlib

import numpy as np


def content_identity(name: str, count: int, *content: bytes | np.ndarray) -> str:
    """Returns `name:count:digest`, the digest being 16 hexadecimal digits of SHA-256.

    Args:
      name: of the data set.
      count: its number of examples.
      content: what distinguishes it: bytes or C-contiguous arrays.
    """
    digest = hashlib.sha256()
    for item in content:
        digest.update(item)
    return f'{name}:{count}:{digest.hexdigest()[:16]}'
