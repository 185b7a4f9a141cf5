"""The comparison of the rule with its neighbours changes one field at a time."""

import recipes

from mae_jax.config.files import load_config


def rule(protocol, **fields):
    config = load_config(f'configs/{protocol}.py')
    config.num_epochs, config.batch_size = 50.0, 64
    config.optimizer.update(base_lr=0.4, warmup_epochs=5.0, name='adamw')
    config.update(fields)
    return config


def test_neighbours_of_fine_tuning():
    config = rule('finetune')
    cells = dict(recipes.grid(config, 1000))
    assert cells.pop('the rule') is config
    rates = {name: cell.optimizer.base_lr * cell.batch_size / 256 for name, cell in cells.items()}
    assert abs(rates['learning rate x 3'] / 0.3 - 1) < 1e-6
    assert abs(rates['batch x 2'] / (0.1 * 2**0.5) - 1) < 1e-6  # with the root of the batch
    assert cells['learning rate x 3'].batch_size == cells['epochs x 2'].batch_size == 64
    assert cells['epochs x 2'].optimizer.warmup_epochs == 10
    assert [name for name in cells if 'batch' in name] == ['batch x 0.5', 'batch x 2']


def test_neighbours_of_a_probe_keep_its_learning_rate_and_fit_the_data():
    cells = dict(recipes.grid(rule('linprobe', trained='head'), 100))
    assert 'batch x 2' not in cells
    half = cells['batch x 0.5']
    assert abs(half.optimizer.base_lr * half.batch_size / 256 / 0.1 - 1) < 1e-6


def test_features_are_encoded_once_for_each_split():
    calls = []

    class Split:
        def __init__(self, identity):
            self.identity = identity

    once = recipes.remembering(lambda *args: calls.append(args[3].identity) or (args[3],))
    for identity in ('train', 'val', 'train', 'val'):
        assert once(None, None, None, Split(identity), None, 8)[0].identity == identity
    assert calls == ['train', 'val']
