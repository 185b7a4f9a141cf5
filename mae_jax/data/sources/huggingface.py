"""Data sets of Hugging Face's `datasets`, where that library is installed."""

import functools
from typing import Any

import numpy as np

from mae_jax.data.images.decode import BadImage
from mae_jax.data.images.limits import MAX_IMAGE_BYTES
from mae_jax.data.sources.identity import content_identity
from mae_jax.data.sources.labels import read_labels
from mae_jax.data.sources.protocol import Example
from mae_jax.errors import UserError
from mae_jax.files.limits import read_bytes, reason

SAMPLE = 64
"""Images whose bytes are part of the identity, evenly spread: reading all takes too long."""


class HuggingFaceSource:
    """One split of a data set that `datasets` has loaded.

        split = datasets.load_dataset('beans', split='train')
        mae_jax.run(config, 'runs/beans', train=mae_jax.HuggingFaceSource(split))

    Images are decoded by this package, as those of any other source.

    Attributes:
      labels: int [N], or None where there are none.
      class_names: the name of each class, in the order of the labels.
    """

    def __init__(self, dataset: Any, image: str | None = None, label: str | None = None):
        """Makes a source of a `datasets.Dataset`.

        Args:
          dataset: with random access: no `IterableDataset`, no `DatasetDict`.
          image: the column of images; None takes the first of the type `datasets.Image`.
          label: the column of labels; None takes the first of the type `ClassLabel`, if there is
            one.

        Raises:
          UserError: it is no such data set, or has no such column.
        """
        datasets = _import_datasets()
        if not isinstance(dataset, datasets.Dataset):
            raise UserError(
                f'a {type(dataset).__name__} is not a datasets.Dataset: give one split, loaded '
                'without streaming.'
            )
        features = dataset.features
        image = image or _first(features, datasets.Image)
        label = label or _first(features, datasets.ClassLabel)
        for column, kind in ((image, 'images'), (label, 'labels')):
            if column not in features and (column is not None or kind == 'images'):
                raise UserError(
                    f'the data set has no column of {kind}{f" {column!r}" if column else ""}; it '
                    f'has {", ".join(features)}.'
                )
        dataset = dataset.with_format(None)
        names = getattr(features.get(label), 'names', None)
        labels = None if label is None else dataset[label][:]
        self.labels, self.class_names = read_labels(labels, names, len(dataset))
        self._images = dataset.select_columns([image])
        if isinstance(features[image], datasets.Image):  # else: columns of arrays
            self._images = self._images.cast_column(image, datasets.Image(decode=False))
        self._column = image
        self._name = dataset.info.dataset_name or 'huggingface'

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @functools.cached_property
    def identity(self) -> str:
        labels = np.zeros(0, np.int32) if self.labels is None else self.labels
        rows = np.linspace(0, len(self) - 1, min(SAMPLE, len(self))).astype(int)
        sample = [self._image(int(row)) for row in rows]
        return content_identity(self._name, len(self), labels, *sample)

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Example:
        label = -1 if self.labels is None else int(self.labels[index])
        return {'image': self._image(index), 'label': label, 'name': f'{self._name}/{index}'}

    def _image(self, index: int) -> bytes | np.ndarray:
        value = self._images[index][self._column]
        if not isinstance(value, dict):
            return np.ascontiguousarray(value)
        if value['bytes'] is not None:
            return value['bytes']
        try:
            return read_bytes(value['path'], MAX_IMAGE_BYTES)
        except OSError as error:
            raise BadImage(f'{value["path"]} cannot be read: {reason(error)}.') from error


def _first(features: Any, kind: type) -> str | None:
    return next((name for name, feature in features.items() if isinstance(feature, kind)), None)


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError('data sets of Hugging Face need `pip install datasets`.') from error
    return datasets
