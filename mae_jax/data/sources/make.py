"""`dataset.name` -> the source of a split.

A name is looked up in this order:

1. a name in `SOURCES`: coco, csv, digits, folder, paired_folders, prepared, synthetic, or one added
   by `SOURCES.register`;
2. 'module:function', a factory of one's own (below), where the module can be imported;
3. a data set of TensorFlow Datasets ('imagenet2012', 'imagenet_v2/matched-frequency:3.0.0',
   'huggingface:beans', 'robotics:mt_opt_rlds').

A TFDS name may contain a colon too. It is taken for a factory only where both sides of the colon
are Python names and the module is dotted, has been imported or is on the Python path; `huggingface`
is always TFDS's. A name that another's checkpoint brought with it never comes this far if it has
the form of 2 or of a TFDS namespace: `experiment/inherit.py` refuses it.

A factory is called as

    function(split, *, path, channels, image_size, seed) -> Source

with `split` str (`dataset.train_split` or `dataset.eval_split`), `path` str or None
(`dataset.path`), `channels` int, `image_size` (height, width) in pixels, and `seed` int. It returns
a `Source` (`protocol.py`) or raises `mae_jax.errors.UserError`.
"""

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mae_jax.data.sources.protocol import Source
from mae_jax.data.sources.synthetic import IMAGENET_EXAMPLES
from mae_jax.errors import UserError
from mae_jax.files.paths import expand_home
from mae_jax.registry import Registry

SOURCES = Registry(
    'data source',
    'dataset.name',
    {
        'coco': 'mae_jax.data.sources.coco:coco_source',
        'csv': 'mae_jax.data.sources.files:csv_source',
        'digits': 'mae_jax.data.sources.digits:digits_source',
        'folder': 'mae_jax.data.sources.folder:folder_source',
        'paired_folders': 'mae_jax.data.sources.paired_folders:paired_folders',
        'prepared': 'mae_jax.data.sources.prepared:prepared_source',
        'synthetic': 'mae_jax.data.sources.synthetic:synthetic_source',
    },
)
"""Factories of sources by name; a string is imported when it is first used."""

SPLITTING = ('folder', 'csv', 'paired_folders', 'coco')
"""Sources that hold examples out where there is no evaluation split."""
PYTHON = 'python'
"""The name of sources that were passed to `mae_jax.run`, in the config of the run."""
REQUIRED = ('__len__', '__getitem__', 'num_classes', 'class_names', 'identity')


def make_source(
    name: str,
    split: str,
    *,
    path: str | None = None,
    channels: int = 3,
    image_size: tuple[int, int] = (224, 224),
    synthetic_examples: int = IMAGENET_EXAMPLES,
    seed: int = 0,
    held_out_share: float | None = None,
    masks: Mapping[str, Any] = MappingProxyType({}),
    instances: Mapping[str, Any] = MappingProxyType({}),
) -> Source:
    """Returns one split of a data set, with random access to its examples.

    Args:
      name: 'coco', 'digits', 'folder', 'paired_folders', 'prepared' (by `mae-jax prepare`),
        'synthetic', 'module:function' for a factory of one's own, or the TFDS name of an image data
        set.
      split: 'train' or an evaluation split; 'validation', 'val' and 'test' stand for each other.
      path: folder: its root; prepared: the directory that was written; TFDS: its data_dir.
      channels: of the images; prepared: must be those it was prepared with.
      image_size: synthetic: (height, width) in pixels.
      synthetic_examples: synthetic: the number of examples.
      seed: synthetic: of the pixels.
      held_out_share: coco, folder, csv, paired_folders: of a data set without an evaluation split;
        see `splits.py`.
      masks: paired_folders: further arguments of its factory.
      instances: coco: further arguments of its factory.

    Raises:
      UserError: the data set or the split does not exist or cannot be used, or a factory of one's
        own returns something that is not a source.
    """
    if name == PYTHON:
        raise UserError(
            'the images of this run were passed from Python: call mae_jax.run(config, workdir, '
            'train=..., held_out=...) again, or give dataset.name.'
        )
    path = path and expand_home(path)
    factory = _find_factory(name)
    if name == 'synthetic':
        factory = functools.partial(factory, examples=synthetic_examples)
    if name == 'paired_folders':
        factory = functools.partial(factory, **masks)
    if name == 'coco':
        factory = functools.partial(factory, **instances)
    if name in SPLITTING:
        factory = functools.partial(factory, held_out_share=held_out_share)
    source = factory(split, path=path, channels=channels, image_size=image_size, seed=seed)
    check_source(f'dataset.name={name!r} returned', source)
    return source


def _find_factory(name: str) -> Callable[..., Source]:
    if name in SOURCES or is_own_factory(name):
        return SOURCES.get(name)
    from mae_jax.data.sources.tfds import tfds_source  # takes a second to import

    return functools.partial(tfds_source, name)


def is_own_factory(name: str) -> bool:
    """Returns whether a name with a colon is 'module:function' rather than a name of TFDS."""
    module, _, function = name.partition(':')
    if not all(word.isidentifier() for word in (*module.split('.'), function)):
        return False
    if '.' in module:  # of TFDS neither a namespace nor a data set has dots
        return True
    if module == 'huggingface':
        return False
    return module in sys.modules or importlib.util.find_spec(module) is not None


def check_source(origin: str, source: Source) -> None:
    """Raises a UserError, which begins with `origin`, for an object that is not a source."""
    # Looked up without evaluating properties: an identity may have to read all the data.
    missing = [
        attribute
        for attribute in REQUIRED
        if inspect.getattr_static(source, attribute, None) is None
        and not hasattr(source, attribute)
    ]
    if missing:
        raise UserError(
            f'{origin} a {type(source).__name__} without {", ".join(missing)}: a source is '
            'described in mae_jax/data/sources/protocol.py.'
        )
