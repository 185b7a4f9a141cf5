"""Batches are put together from pieces, in order, whatever order their images arrive in."""

import threading
import time

import jax
import numpy as np
import pytest

from mae_jax.data.loader.assembly import OnHost, assemble, chunk_of, put_whole
from mae_jax.data.loader.layout import ALIGNMENT, Memory, layout_of
from mae_jax.data.loader.order import Share
from mae_jax.data.loader.read_ahead import ReadOptions, read_ahead
from mae_jax.data.loader.readers import Threads

IMAGES, PIECES = 6, 3
BATCH = IMAGES * PIECES


def new_arrays(layout):
    return layout.arrays(Memory().take(layout.nbytes()))


def load(number):
    """Returns two rows of an image of four pixels."""
    return {
        'image': np.full((2, 2, 2, 1), number, np.uint16),
        'label': np.full(2, number, np.int32),
        'replaced': np.array([number % 5 == 0, False]),
        'name': f'image {number}',
    }


class Recorded:
    """A destination of three pieces that keeps what it gets."""

    pieces = PIECES

    def __init__(self):
        self.numbers = []

    def put(self, number, rows, lent):
        self.numbers.append(number)
        assert 'replaced' not in rows and 'name' not in rows
        return rows

    def join(self, pieces):
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def stream(load=load, steps=4, destination=None, **options):
    return read_ahead(
        load,
        lambda position: position,
        Share(np.arange(BATCH), BATCH),
        start_step=1,
        stop_step=1 + steps,
        options=ReadOptions(**options),
        destination=destination or Recorded(),
        finish=lambda loaded: loaded,
    )


def slow_in_turn(number):
    time.sleep(0.02 * (number % 3))
    return load(number)


@pytest.mark.parametrize('prefetch', [1, 3])
def test_pieces_arrive_in_order_though_later_images_are_loaded_first(prefetch):
    destination = Recorded()
    with stream(slow_in_turn, destination=destination, threads=4, prefetch=prefetch) as batches:
        batches = list(batches)
    assert destination.numbers == [0, 1, 2] * 4
    for step, loaded in enumerate(batches, 1):
        expected = np.repeat(np.arange(step * BATCH, (step + 1) * BATCH), 2)
        np.testing.assert_array_equal(loaded.batch['label'], expected)
        np.testing.assert_array_equal(loaded.batch['image'][:, 1, 1, 0], expected)
        assert loaded.batch['image'].dtype == np.uint16 and loaded.rows == 2 * BATCH
        assert loaded.replaced == (np.unique(expected) % 5 == 0).sum()


def test_the_first_error_in_order_is_raised_after_the_batches_before_it():
    def broken(number):
        if number in (3 * BATCH + 4, 3 * BATCH + 9):
            time.sleep(0.1 if number == 3 * BATCH + 4 else 0)
            raise RuntimeError(f'image {number} is broken')
        return load(number)

    with stream(broken, threads=8, prefetch=4) as batches:
        assert [loaded.batch['label'][0] for loaded in (next(batches), next(batches))] == [18, 36]
        with pytest.raises(RuntimeError, match='image 58 is broken'):
            next(batches)
        with pytest.raises(StopIteration):
            next(batches)


class Lending(Threads):
    """Threads that fill the same memory again, as worker processes do."""

    lent = True

    def __init__(self, load, layout, threads):
        super().__init__(load, layout, threads)
        self.memory = [new_arrays(layout) for _ in range(2)]

    def arrays(self, slot):
        return self.memory[slot].copy()


def test_batches_on_the_host_keep_their_rows_where_memory_is_lent():
    readers = Lending(load, layout_of(load(0), 4), threads=2)
    options = dict(images=4, slots=2, stop=threading.Event())
    batches = list(assemble(readers, OnHost(), lambda count: count, range(40), **options))
    readers.close()
    labels = np.concatenate([loaded.batch['label'] for loaded in batches])
    np.testing.assert_array_equal(labels, np.repeat(np.arange(40), 2))


def test_no_more_pieces_are_loaded_ahead_than_there_are_slots():
    seen = []

    def noted(number):
        seen.append(number)
        return load(number)

    with stream(noted, steps=50, threads=2, prefetch=2) as batches:
        next(batches)
        time.sleep(0.3)
    # Two batches ahead of those that were handed out, wait in the queue, or are to be queued.
    assert BATCH < max(seen) < BATCH * (1 + 3 + 2)


def test_every_loader_gets_work_from_a_batch():
    assert chunk_of(images=512, pieces=8, loaders=64) == 16
    assert chunk_of(images=512, pieces=8, loaders=2) == 32
    assert chunk_of(images=2, pieces=8, loaders=64) == 1
    assert chunk_of(images=5, pieces=1, loaders=1) == 1


def test_an_image_of_another_size_is_not_broadcast_into_the_batch():
    layout = layout_of(load(0), 3)
    with pytest.raises(ValueError, match='image 7: image is uint16'):
        layout.write(new_arrays(layout), 0, load(7) | {'image': np.ones((2, 1, 2, 1), np.uint16)})


@pytest.mark.parametrize('nbytes', [1, 63, 5_000_000])
def test_memory_is_aligned_and_used_again_once_nothing_refers_to_it(nbytes):
    memory = Memory()
    array = np.frombuffer(memory.take(nbytes), np.uint8)
    address, part = array.ctypes.data, array[:1][::-1]
    assert array.nbytes == nbytes and address % ALIGNMENT == 0
    del array
    other = np.frombuffer(memory.take(nbytes), np.uint8)
    assert other.ctypes.data != address  # a view of the first still refers to it
    del part
    assert np.frombuffer(memory.take(nbytes), np.uint8).ctypes.data == address


def test_memory_that_a_device_array_uses_is_not_used_again():
    memory = Memory()
    array = jax.device_put(memory.copy(np.full(100_000, 1, np.uint8)))
    for _ in range(3):
        memory.copy(np.full(100_000, 2, np.uint8))
    np.testing.assert_array_equal(array, np.full(100_000, 1))


def test_a_copy_has_the_order_and_values_of_the_array():
    array = np.arange(15, dtype=np.float64).reshape(3, 5).T
    copy = Memory().copy(array)
    np.testing.assert_array_equal(copy, array)
    assert copy.flags.c_contiguous and copy.dtype == array.dtype


def test_a_batch_in_memory_is_split_into_pieces():
    arrays = {'canvas': np.arange(3), 'box': np.arange(12)}
    destination = Recorded()
    batch = put_whole(destination, arrays)
    assert destination.numbers == [0, 1, 2]
    for name, expected in arrays.items():
        np.testing.assert_array_equal(batch[name], expected)
