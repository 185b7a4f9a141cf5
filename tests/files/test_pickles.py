"""Pickles of arrays are read as NumPy itself reads them, and nothing in others is run."""

import pickle
from collections import OrderedDict

import numpy as np
import pytest
from helpers import hostile_files

from mae_jax.errors import UserError
from mae_jax.files.pickles import read_pkl, write_pkl

ARRAYS = {
    'c': np.arange(6, dtype=np.float32).reshape(2, 3),
    'fortran': np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    'half': np.float16([1.5, -2]),
    'big': np.array([1, 2], '>i8'),
    'empty': np.zeros((0, 4), np.float32),
    'scalar': np.array(7, np.int64),
}


@pytest.mark.parametrize('protocol', [0, 2, 3, 4, 5])
def test_arrays_are_those_that_numpy_stored(protocol, tmp_path):
    content = {'model': OrderedDict(ARRAYS), '__author__': 'someone', 'iteration': np.int64(5)}
    path = tmp_path / 'model.pkl'
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read = read_pkl(path)
    assert read['__author__'] == 'someone'
    assert read['model'].keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert read['model'][name].dtype == array.dtype.newbyteorder('='), name
        np.testing.assert_array_equal(read['model'][name], array, err_msg=name)


def test_what_is_written_is_read_by_pickle(tmp_path):
    write_pkl(tmp_path / 'model.pkl', {'model': ARRAYS})
    read = pickle.loads((tmp_path / 'model.pkl').read_bytes())
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read['model'][name], array)


@pytest.mark.parametrize('protocol', [0, 2, 4])
@pytest.mark.parametrize('nested', [False, True])
def test_no_code_is_run(protocol, nested, tmp_path):
    bomb = hostile_files.Bomb(tmp_path)
    content = {'model': {'a': bomb}} if nested else bomb
    path = tmp_path / 'bomb.pkl'
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(UserError, match=r'it would run \w+\.exec, which is never done'):
        read_pkl(path)
    assert not (tmp_path / 'ran').exists()
    pickle.loads(path.read_bytes())  # where pickles are trusted it does
    assert (tmp_path / 'ran').exists()


@pytest.mark.parametrize(
    'data, message',
    [
        (b'', 'truncated, damaged or of another kind'),
        (pickle.dumps({'model': ARRAYS})[:-40], 'truncated, damaged or of another kind'),
        (pickle.dumps([1, 2]), 'no named tensors'),
        (pickle.dumps({'a': np.array([{}], object)}), "numbers of the type 'O8'"),
        (pickle.dumps({'a': np.array(['x'])}), "numbers of the type 'U1'"),
        (pickle.dumps({'a': ARRAYS['c']}).replace(b'K\x02K\x03', b'K\x02K\x04'), 'of its shape'),
        (b'\x80\x04r\xff\xff\xff\x7f.', 'truncated, damaged or of another kind'),
        (b'\x80\x04\x8e' + b'\xff' * 8, 'truncated, damaged or of another kind'),
    ],
)
def test_damaged_files_are_refused_in_one_sentence(data, message, tmp_path):
    path = tmp_path / 'model.pkl'
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as raised:
        read_pkl(path)
    assert str(path) in str(raised.value) and '\n' not in str(raised.value)


def test_a_dict_that_holds_itself_is_no_endless_loop(tmp_path):
    content = {'a': ARRAYS['c']}
    content['model'] = content
    (tmp_path / 'model.pkl').write_bytes(pickle.dumps(content))
    np.testing.assert_array_equal(read_pkl(tmp_path / 'model.pkl')['model']['a'], ARRAYS['c'])


def test_an_array_that_claims_more_than_the_file_has_is_refused(tmp_path):
    """One array in many places, each of which would be a copy."""
    array = np.zeros(1 << 20, np.float32)
    content = {str(number): array for number in range(400)}
    (tmp_path / 'model.pkl').write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match='claim to hold'):
        read_pkl(tmp_path / 'model.pkl')
