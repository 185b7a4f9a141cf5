"""Image data sets of the TensorFlow Datasets catalogue, read without TensorFlow.

A data set must have been prepared as ArrayRecord (or Parquet). Preparing most of them needs
TensorFlow, once: `pip install tensorflow` and `tfds build <name> --file_format=array_record`.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator

import tensorflow_datasets as tfds

from mae_jax.data.sources.protocol import Example
from mae_jax.data.sources.splits import existing_split
from mae_jax.errors import UserError
from mae_jax.files.buckets import as_path, is_remote


class TfdsSource:
    """A split of a data set that TFDS has prepared."""

    def __init__(self, name: str, split: str, data_dir: str | None):
        """Opens the data set; its images are read and decoded one by one.

        Args:
          name: as TFDS writes it: 'data_set/config:version', or 'namespace:data_set'.
          split: of the data set, or a slice of it such as 'train[:90%]'.
          data_dir: the directory of prepared data sets; None for ~/tensorflow_datasets.

        Raises:
          UserError: TFDS does not know the data set, it is not prepared or has no random access,
            it has no such split or no images, or its files would run code or are elsewhere.
        """
        builder = _builder(name, data_dir)
        info = builder.info
        whole, *slice_ = split.partition('[')
        split = existing_split(name, whole, list(info.splits)) + ''.join(slice_)
        self._image = _image_feature(name, info.features)
        labels = [k for k, f in info.features.items() if isinstance(f, tfds.features.ClassLabel)]
        self._label = 'label' if 'label' in labels else next(iter(labels), None)
        self.num_classes = info.features[self._label].num_classes if self._label else 0
        self.class_names = info.features[self._label].names if self._label else []
        self._name = f'{info.full_name}/{split}'
        # `images.decode` decodes them: TFDS would leave CMYK as it is, or need TensorFlow.
        decoders = {self._image: tfds.decode.SkipDecoding()}
        try:
            self._data = builder.as_data_source(split=split, decoders=decoders)
        except NotImplementedError as error:
            raise UserError(
                f'{name} in {builder.data_path} was prepared as {info.file_format.value}, which '
                'has no random access; prepare it again with '
                f'`tfds build {name} --file_format=array_record`.'
            ) from error
        except ValueError as error:
            raise UserError(f'{name}: {error}') from error
        instructions = info.splits[split].file_instructions
        _check_inside(name, os.fspath(builder.data_path), [i.filename for i in instructions])
        shards = [i.filename + str(i.take) for i in instructions]
        digest = hashlib.sha256('\0'.join(shards).encode()).hexdigest()[:16]
        self.identity = f'{self._name}:{len(self)}:{digest}'

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Example:
        example = self._data[index]
        label = int(example[self._label]) if self._label else -1
        return {'image': example[self._image], 'label': label, 'name': f'{self._name}/{index}'}


def _builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    directory = data_dir or '~/tensorflow_datasets'
    if is_remote(directory):
        as_path(directory)
    try:
        with _without_imports(name):
            builder = tfds.builder(name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise UserError(
            f'dataset.name={name!r} is none of digits, folder, prepared and synthetic, nor '
            "'module:function' of a module on the Python path, and TensorFlow Datasets knows no "
            f'such data set nor finds it in {directory}; see tensorflow.org/datasets/catalog.'
        ) from error
    except ImportError as error:
        raise UserError(
            f'{name} cannot be opened: {error}; what it needs comes with `pip install tensorflow`.'
        ) from error
    if not builder.info.splits:
        raise UserError(
            f'{name} is not prepared in {directory}; prepare it once with '
            f'`pip install tensorflow` and `tfds build {name} --file_format=array_record`, '
            'or set dataset.path to the directory that contains it.'
        )
    return builder


@contextlib.contextmanager
def _without_imports(name: str) -> Iterator[None]:
    """Keeps the features.json of a data set from importing modules.

    The file names the class of each feature, and TFDS would import the module of the class, which
    runs it. Allowed are TFDS's own modules and those that have been imported already.
    """
    connector = tfds.features.FeatureConnector
    original = connector.__dict__['cls_from_name']

    def cls_from_name(cls, python_class_name: str):
        module = python_class_name.rpartition('.')[0]
        if not module.startswith('tensorflow_datasets.core.') and module not in sys.modules:
            raise UserError(
                f'The features.json of {name} would import {module!r}, which is never done: if you '
                'trust that module, import it in your config.'
            )
        return original.__func__(cls, python_class_name)

    connector.cls_from_name = classmethod(cls_from_name)
    try:
        yield
    finally:
        connector.cls_from_name = original


def _check_inside(name: str, folder: str, files: list[str]) -> None:
    """Checks that the files that dataset_info.json names are in the folder of the data set."""
    for file in map(os.path.normpath, files):
        if os.path.dirname(file) != os.path.normpath(folder):
            raise UserError(
                f'The dataset_info.json of {name} names {file}, which is not in {folder}: prepare '
                'the data set again.'
            )


def _image_feature(name: str, features: tfds.features.FeaturesDict) -> str:
    images = [key for key, f in features.items() if isinstance(f, tfds.features.Image)]
    if not images:
        raise UserError(f'{name} has no image in its examples; it has {", ".join(features)}.')
    return 'image' if 'image' in images else images[0]


def tfds_source(name: str, split: str, *, path: str | None, **unused) -> TfdsSource:
    """Returns a `TfdsSource` of the data directory `path`; `make_source` calls it."""
    return TfdsSource(name, split, path)
