"""The order of examples and the share of a process."""

import itertools

from mae_jax.data.loader.order import epochs, share_of_rows


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    orders = {
        tuple(epochs(20, seed)[i] for i in range(epoch * 20, epoch * 20 + 20))
        for seed, epoch in itertools.product(range(3), range(3))
    }
    assert len(orders) == 9  # seed 1, epoch 0 differs from seed 0, epoch 1


def test_positions_of_a_share_skip_the_images_of_other_processes():
    share = share_of_rows([2, 3, 6, 7], batch_size=8, repeats=2)  # images 1 and 3 of 4
    assert [share.position(count) for count in range(6)] == [1, 3, 5, 7, 9, 11]
