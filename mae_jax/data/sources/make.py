"""Data sets as random-access sources.

A source has `len(source)`, `source[i] -> {'image': encoded bytes or array [H,W,C], 'label': int
(-1: none), 'name': str}`, and the attributes `num_classes` (0: unlabelled), `class_names` and
`identity`, a short text that another data set, split or order would not have. It can be pickled.
"""

from mae_jax.data.sources.arrays import digits_source
from mae_jax.data.sources.folder import folder_source
from mae_jax.data.sources.synthetic import IMAGENET_EXAMPLES, SyntheticSource


def make_source(
    name: str,
    split: str,
    *,
    path: str | None = None,
    channels: int = 3,
    image_size: tuple[int, int] = (224, 224),
    synthetic_examples: int = IMAGENET_EXAMPLES,
    seed: int = 0,
):
    """The split of a data set.

    Args:
      name: 'digits', 'folder', 'prepared' (by `mae-jax prepare`), 'synthetic', or the TFDS name of
        an image data set.
      split: 'train' or an evaluation split; 'validation', 'val' and 'test' find each other.
      path: folder: its root; prepared: what was written; TFDS: its data_dir.
      channels, image_size, synthetic_examples, seed: of the `synthetic` images.

    Raises:
      UserError: the data set, the split or its images are not there, or not as they should be.
    """
    if name == 'digits':
        return digits_source(split)
    if name == 'synthetic':
        return SyntheticSource((*image_size, channels), synthetic_examples, seed, split)
    if name == 'folder':
        return folder_source(path, split)
    if name == 'prepared':
        from mae_jax.data.sources.prepared import PreparedSource

        return PreparedSource(path, split, channels)
    from mae_jax.data.sources.tfds import TfdsSource  # takes a second to import

    return TfdsSource(name, split, path)
