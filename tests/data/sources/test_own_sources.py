"""Sources of one's own, by `module:function` or registered, and names of TFDS with a colon."""

import sys
import textwrap

import numpy as np
import pytest

from mae_jax.data.loader.batches import make_loader
from mae_jax.data.prepare.prepare import prepare
from mae_jax.data.sources.arrays import ArraySource
from mae_jax.data.sources.make import SOURCES, is_own_factory, make_source
from mae_jax.errors import UserError

MODULE = '''
    import numpy as np


    class Squares:
        """Grey squares, lighter from example to example."""

        num_classes, class_names, identity = 2, ['dark', 'light'], 'squares'

        def __init__(self, arguments):
            self.arguments = arguments

        def __len__(self):
            return 40

        def __getitem__(self, index):
            image = np.full((8, 8, self.arguments['channels']), 6 * index, np.uint8)
            return {'image': image, 'label': index // 20, 'name': f'square {index}'}


    def squares(split, *, path, channels, image_size, seed):
        arguments = dict(path=path, channels=channels, image_size=image_size, seed=seed)
        return Squares({'split': split} | arguments)


    def numbers(split, **unused):
        return [1, 2, 3]
'''


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Returns the name of a module on the Python path that defines sources."""
    (tmp_path / 'own_data.py').write_text(textwrap.dedent(MODULE))
    monkeypatch.syspath_prepend(tmp_path)
    yield 'own_data'
    sys.modules.pop('own_data', None)


def test_a_function_is_called_with_the_documented_arguments(own_module):
    arguments = dict(path='/data', channels=1, image_size=(8, 16), seed=3)
    source = make_source(f'{own_module}:squares', 'train', **arguments)
    assert source.arguments == {'split': 'train'} | arguments


def test_a_source_of_ones_own_is_loaded_in_batches(own_module):
    source = make_source(f'{own_module}:squares', 'train', channels=1)
    options = dict(batch_size=40, rows=range(40), seed=0, image_size=(4, 4), channels=1)
    batch = make_loader(source, **options).batch_at(0)
    assert np.unique(batch['image']).tolist() == [6 * index for index in range(40)]
    np.testing.assert_array_equal(batch['label'], batch['image'][:, 0, 0, 0] >= 120)


@pytest.mark.slow
def test_worker_processes_import_a_source_of_ones_own(own_module):
    source = make_source(f'{own_module}:squares', 'train', channels=1)
    options = dict(batch_size=4, rows=range(4), seed=0, image_size=(4, 4), channels=1)
    loader = make_loader(source, workers=1, **options)
    with loader.iterate(0, 2) as batches:
        for step, batch in enumerate(batches):
            np.testing.assert_array_equal(batch['image'], loader.batch_at(step)['image'])


def test_a_registered_source_is_used_by_its_name():
    images = np.zeros((3, 8, 8, 1), np.uint8)

    @SOURCES.register('three_zeros')
    def three_zeros(split, **unused):
        return ArraySource(images, np.arange(3), ['a', 'b', 'c'], split)

    assert make_source('three_zeros', 'validation')[2]['name'] == 'validation/2'


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('own_data:circles', r"dataset\.name='own_data:circles': own_data has no function"),
        ('own_data.more:squares', r"dataset\.name='own_data\.more:squares' cannot be imported"),
        ('own_data:numbers', 'returned a list without num_classes, class_names, identity'),
    ],
)
def test_a_function_that_is_no_source_is_explained(own_module, name, message):
    with pytest.raises(UserError, match=message):
        make_source(name, 'train')


@pytest.mark.parametrize(
    ('name', 'is_own'),
    [
        ('own_data:squares', True),
        ('their.package:squares', True),  # TFDS has no dots in its names
        ('mnist', False),
        ('mnist:3.0.1', False),
        ('mnist:3.*.*', False),
        ('imagenet_v2/matched-frequency', False),
        ('imagenet_v2/matched-frequency:3.0.0', False),
        ('my_set/v1.0:1.0.0', False),
        ('my_set/split=a:b', False),
        ('robotics:mt_opt_rlds', False),
        ('some-namespace:photos', False),
        ('huggingface:beans', False),
        ('huggingface:own_data/default', False),
        ('own_data:1.0.0', False),
        (':', False),
        ('', False),
    ],
)
def test_names_of_tfds_are_not_taken_for_functions(own_module, name, is_own):
    assert is_own_factory(name) == is_own
    assert 'own_data' not in sys.modules  # nothing is imported to decide it


def test_huggingface_is_the_namespace_of_tfds_even_beside_such_a_module(tmp_path, monkeypatch):
    (tmp_path / 'huggingface.py').touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_own_factory('huggingface:beans')


def test_images_that_are_not_encoded_cannot_be_prepared(own_module, tmp_path):
    with pytest.raises(UserError, match='square 0 is not an encoded image'):
        prepare(f'{own_module}:squares', str(tmp_path / 'out'), channels=1, workers=1)
