"""The step benchmark runs, and its figures follow from the measured times."""

import time

import jax
import numpy as np
import pytest
import step_report
import torch_peers
import train_step
from measure import Contender, both_clocks, interleaved, markdown

from configs import finetune_base, finetune_huge, finetune_large
from mae_jax.tasks import make_task

MODEL = dict(width=32, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2)
BATCH = 8


@pytest.fixture(scope='module')
def task():
    return train_step.make_task('vit_tiny', 16, 'float32', patch_size=4, **MODEL)


@pytest.fixture(scope='module')
def classify():
    fields = {'width': 32, 'depth': 1, 'heads': 2, 'num_classes': 10, 'head_std': 0.02}
    return train_step.make_finetuning('vit_tiny', 16, 'float32', patch_size=4, **fields)


def contender(task, batch_size=BATCH):
    batch = train_step.make_batch(task, batch_size)
    return train_step.ours(task, batch, train_step.make_recipe(task, 'vit_tiny'))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['task', 'classify'])
def test_run_of_mae_jax_is_a_complete_training_step(name, request):
    ours = contender(request.getfixturevalue(name))
    losses = [ours.run() for _ in range(60)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])  # learns: the step includes the optimiser
    assert ours.compile_s > 0 and ours.memory_gib > 0


@pytest.mark.slow
def test_the_compiler_counts_more_than_the_matrix_products(task):
    # Two thirds of the formula would mean that the backward pass had been optimised away.
    flops = train_step.xla_flops(task, train_step.PRETRAIN)
    assert 0.9 < flops / task.flops_per_image() < 1.5


@pytest.mark.slow
@pytest.mark.parametrize(
    ('variant', 'config'),
    [('vit_base', finetune_base), ('vit_large', finetune_large), ('vit_huge', finetune_huge)],
)
def test_fine_tuning_equals_that_of_the_configs(variant, config):
    config = config.get_config()
    config.model.dtype = 'bfloat16'

    class Source:
        num_classes = train_step.CLASSES

    attention = config.model.attention
    task = train_step.make_finetuning(variant, 224, config.model.dtype, attention=attention)
    assert task == make_task(config, Source())
    recipe = train_step.make_recipe(task, variant)
    fields = {name: config.optimizer[name] for name in recipe if name != 'peak'}
    assert fields == {name: recipe[name] for name in fields}


@pytest.mark.slow
@pytest.mark.parametrize('name', ['task', 'classify'])
@pytest.mark.parametrize('peer', ['eager', 'sdpa'])
def test_a_peer_learns_too(name, peer, request):
    pytest.importorskip('torch')
    pytest.importorskip('transformers')
    pytest.importorskip('timm')
    task = request.getfixturevalue(name)
    recipe = train_step.make_recipe(task, 'vit_tiny') | {'peak': 1e-3}
    batch = train_step.make_batch(task, BATCH)
    theirs = torch_peers.peer(task, batch, peer, recipe, steps=1)
    losses = [theirs.run() for _ in range(60)]
    assert np.mean(losses[-5:]) < np.mean(losses[:5])


def test_runs_are_timed_alternately_after_an_unmeasured_one():
    calls = []
    runs = [lambda: calls.append('a'), lambda: (calls.append('b'), time.sleep(0.01))]
    seconds = interleaved(runs, repeats=3)
    assert ''.join(calls) == 'ab' + 'ab' * 3
    assert seconds.shape == (2, 3) and seconds[1].min() >= 0.01


def test_a_sleeping_run_takes_time_on_the_wall_alone():
    wall, processor = interleaved([lambda: time.sleep(0.05)], repeats=1, clock=both_clocks)[0, 0]
    assert wall >= 0.05 > processor


def test_the_ratio_is_to_the_fastest_peer_of_the_same_dtype():
    names = [('mae_jax', 'float32'), ('slow', 'float32'), ('fast', 'float32')]
    names += [('mae_jax', 'bfloat16'), ('fast', 'bfloat16'), ('mae_jax', 'float16')]
    contenders = [Contender(name, dtype, lambda: 0.0) for name, dtype in names]
    medians = np.array([[2, 2], [4, 8], [3, 5], [4, 4], [1, 2], [9, 9]], float)
    notes = step_report.against_fastest(contenders, medians)
    wall = [note.split()[6].rstrip(',') for note in notes]
    assert wall == ['1.50', '0.25'] and notes[0].startswith('float32: ')
    if jax.default_backend() == 'cpu':
        assert notes[0].endswith("2.50 by the processor's time")


@pytest.mark.slow
def test_report_has_rates_and_ratios_of_the_times():
    fast = Contender('fast', 'float32', lambda: time.sleep(0.02), 1.0, 0.5)
    slow = Contender('slow', 'float32', lambda: time.sleep(0.06))
    other = Contender('other', 'bfloat16', lambda: time.sleep(0.02))
    notes, head, rows = step_report.report([fast, slow, other], BATCH, 3, flops=1e9)
    fast, slow, other = (dict(zip(head, row, strict=True)) for row in rows)
    assert [row['step'] for row in (fast, slow, other)] == ['fast', 'slow', 'other']
    assert float(fast['images/s per device']) == pytest.approx(BATCH / 0.02, rel=0.5)
    ratio = float(fast['images/s per device']) / float(slow['images/s per device'])
    assert float(slow['mae_jax over this']) == pytest.approx(ratio, rel=0.05)
    assert other['mae_jax over this'] == '1.00'  # of its own dtype
    assert fast['peak memory, GiB'] == '0.50' and slow['peak memory, GiB'] == ''
    rates = [float(n.split(': ')[1].split()[0]) for n in notes if n.startswith('matmul rate')]
    share = float(fast['images/s per device']) / rates[0]  # of an image of 1 GFLOP
    assert float(fast['MFU'].rstrip('%')) / 100 == pytest.approx(share, rel=0.05)
    assert markdown(notes, head, rows).count('\n| ') == 4
