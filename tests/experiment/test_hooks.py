"""Evaluation and encoding see every example once, on any devices, in any batches, by any processes.

What they should find is worked out apart: pixels by Pillow, probabilities and ranks by NumPy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu.metrics import Average, Collection
from helpers.drawings import cells_of
from helpers.metrics import sums_of
from helpers.slow import slow_after
from helpers.tiny_runs import pretraining
from PIL import Image

from configs import finetune_digits
from mae_jax.config.data import eval_batch_size, eval_passes, make_eval_batches, make_source_of
from mae_jax.data.sources.arrays import ArraySource
from mae_jax.data.sources.digits import digits_source
from mae_jax.errors import UserError
from mae_jax.evaluation.encode import make_encode
from mae_jax.evaluation.exact import make_evaluate
from mae_jax.experiment.hooks import evaluation_hook, picture_hook
from mae_jax.tasks import make_task
from mae_jax.tasks.classify_metrics import PerClass
from mae_jax.training import sharding as mesh_lib
from mae_jax.training.state import AveragingState, TrainState

HELD_OUT = 360


def make_config(**dataset):
    """One block over 8x8 digits; its head starts with logits that differ."""
    config = finetune_digits.get_config()
    config.model.update(width=16, depth=1, heads=2, head_std=0.1)
    config.per_class = True
    config.dataset.update(dataset)
    return config


@functools.cache
def digits():
    """(config, held-out examples, task, parameters)."""
    config = make_config()
    source = make_source_of(config, 'validation')
    task = make_task(config, source)
    return config, source, task, jax.jit(task.init)(jax.random.key(0))[0]


def state_of(params, ema=None):
    fields = jnp.zeros((), jnp.int32), params, {}, ()
    return TrainState(*fields) if ema is None else AveragingState(*fields, ema=ema)


def sums_by_hand(task, params, pixels: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """All examples in one batch: hits by sorting, cross-entropy in double precision."""
    normal = (pixels.astype(np.float32) / np.float32(255) - task.mean) / task.std
    logits = jax.jit(task.model.apply)({'params': params}, normal.astype(np.float32))
    logits = np.asarray(logits, np.float64)
    hits = np.argsort(-logits, axis=1, kind='stable')[:, :5] == labels[:, None]
    log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    count = functools.partial(np.bincount, minlength=task.model.num_classes)
    return {
        'loss': -log[np.arange(len(labels)), labels].sum(),
        'top1': hits[:, 0].sum(),
        'top5': hits.sum(),
        'count': len(labels),
        'class_hits': count(labels[hits[:, 0]]),
        'class_count': count(labels),
    }


@functools.cache
def digits_by_hand() -> dict[str, np.ndarray]:
    _, source, task, params = digits()
    return sums_by_hand(task, params, source.images, source.labels)


def check(sums, expected):
    """Counts and hits to the last digit, the mean loss to 1e-6."""
    assert sums.keys() == expected.keys()
    for name in expected.keys() - {'loss'}:
        np.testing.assert_array_equal(sums[name], expected[name], err_msg=name)
    mean, target_values = (actual['loss'] / actual['count'] for actual in (sums, expected))
    assert float(mean) == pytest.approx(target_values, abs=1e-6)


def mesh_of(devices: int):
    return mesh_lib.make_mesh(devices=jax.devices()[:devices])


def evaluate(config, source, task, state, devices: int, batch_size: int):
    """As a run evaluates; the batch is cut as a run cuts it."""
    mesh = mesh_of(devices)
    config = config.copy_and_resolve_references()
    config.batch_size = batch_size
    mesh_lib.check_batch(batch_size, mesh)
    batch_size = eval_batch_size(config, mesh, len(source))
    passes = eval_passes(config, source, mesh, batch_size, check=task.check)
    return sums_of(make_evaluate(task, mesh, passes, batch_size)(state))


# 90, 120 and 40 divide the 360 digits; the others do not, and 1032 is more than all of them.
MESHES_AND_BATCHES = [(1, 7), (3, 120), (8, 64), (8, 1032), (1, 90), (3, 63), (8, 40)]


@pytest.mark.parametrize(('devices', 'batch_size'), slow_after(3, MESHES_AND_BATCHES))
def test_digits_are_evaluated_exactly(devices, batch_size):
    config, source, task, params = digits()
    sums = evaluate(config, source, task, state_of(params), devices, batch_size)
    check(sums, digits_by_hand())
    assert sums['count'] == HELD_OUT
    assert 0 < sums['top1'] < sums['top5'] < HELD_OUT


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """(root, pixels as Pillow evaluates them at 16, labels) of 23 JPEGs in three classes."""
    root, pixels, labels = tmp_path_factory.mktemp('photographs'), [], []
    rng = np.random.default_rng(0)
    for label, (name, count) in enumerate([('ant', 11), ('bee', 5), ('cat', 7)]):
        for split in ('train', 'val'):
            (root / split / name).mkdir(parents=True)
        Image.new('RGB', (20, 20)).save(root / 'train' / name / '0.png')
        for number in range(count):
            noise = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
            width, height = 30 + 7 * (number % 4), 24 + 9 * (number % 3)
            file = root / 'val' / name / f'{number:02}.jpg'
            noise.resize((width, height), Image.Resampling.BICUBIC).save(file, quality=90)
            picture, short = Image.open(file), int(16 / 0.875)
            scaled = [short * side // min(width, height) for side in (width, height)]
            picture = picture.resize(scaled, Image.Resampling.BICUBIC)
            left, top = (round((side - 16) / 2) for side in scaled)
            pixels.append(np.asarray(picture.crop((left, top, left + 16, top + 16))))
            labels.append(label)
    return root, np.stack(pixels), np.array(labels)


@pytest.fixture(scope='module')
def photograph_parts(photographs):
    """(config, held-out examples, task, parameters, what evaluation should find)."""
    root, pixels, labels = photographs
    config = make_config(
        name='folder', path=str(root), channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25)
    )
    config.dataset.eval_crop_share = None
    config.image_size = (16, 16)
    config.model.patch_size = 4
    source = make_source_of(config, 'validation')
    task = make_task(config, source)
    params = jax.jit(task.init)(jax.random.key(0))[0]
    return config, source, task, params, sums_by_hand(task, params, pixels, labels)


@pytest.mark.parametrize(('devices', 'batch_size'), [(1, 23), (1, 8), (3, 6), (8, 16)])
def test_photographs_are_evaluated_exactly(photograph_parts, devices, batch_size):
    config, source, task, params, expected = photograph_parts
    sums = evaluate(config, source, task, state_of(params), devices, batch_size)
    check(sums, expected)
    assert sums['count'] == sums['top5'] == 23  # three classes: all are among the best five


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_processes_share_the_examples_out(processes):
    """Each loads its own rows of every batch, as many batches as the others."""
    config, source, task, params = digits()
    run = jax.jit(task.evaluate)
    total, batches_of = {}, []
    for rows in np.split(np.arange(64), processes):
        with make_eval_batches(config, source, batch_size=64, rows=rows) as batches:
            batches = list(batches)
        batches_of.append(len(batches))
        for batch in batches:
            assert len(batch['valid']) == 64 // processes
            for name, value in sums_of(run(params, {}, batch, 0)).items():
                total[name] = total.get(name, 0) + np.asarray(value, np.float64)
    check(total, digits_by_hand())
    assert batches_of == [6] * processes


def test_what_is_evaluated_is_the_average_of_the_parameters():
    config, source, task, params = digits()
    average = jax.jit(task.init)(jax.random.key(1))[0]
    expected = sums_by_hand(task, average, source.images, source.labels)
    assert expected['top1'] != digits_by_hand()['top1']
    check(evaluate(config, source, task, state_of(params, ema=average), 8, 64), expected)
    # A frozen encoder has no average: that of the head goes on top of it.
    state = state_of(average, ema={'head': params['head'], 'fc_norm': params['fc_norm']})
    mixed = params | {'encoder': average['encoder']}
    expected = sums_by_hand(task, mixed, source.images, source.labels)
    check(evaluate(config, source, task, state, 8, 64), expected)


def test_logged_are_the_means():
    metrics = Collection.create_collection(
        loss=Average(np.float64(30), np.int64(12)),
        top1=Average(np.float64(5), np.int64(12)),
        top5=Average(np.float64(9), np.int64(12)),
        per_class=PerClass(np.ones(3), np.ones(3)),
    )
    hook = evaluation_hook(lambda state: metrics, every_steps=7)
    assert hook.every_steps == 7
    assert hook.run(7, None) == {'eval/loss': 2.5, 'eval/top1': 5 / 12, 'eval/top5': 0.75}


@pytest.mark.slow
def test_a_picture_shows_what_becomes_of_the_images_it_is_given():
    source = digits_source('validation')
    task = make_task(pretraining(), source)
    state = state_of(jax.jit(task.init)(jax.random.key(0))[0])
    seen, batch = [], {'image': source.images[:4]}
    draw = task.make_draw(batch, mesh_of(2))
    hook = picture_hook(draw, lambda *shown: seen.append(shown), every_steps=5)
    assert hook.every_steps == 5
    assert hook.run(5, state) == {}
    ((step, name, picture),) = seen
    assert (step, name) == (5, 'reconstruction')
    columns = cells_of(picture, 2, 6, 8, 8)  # two images in a row
    original, masked, filled = (
        np.stack(pair, axis=1).reshape(4, 8, 8, 3)
        for pair in zip(columns[:3], columns[3:], strict=True)
    )
    np.testing.assert_array_equal(original, source.images[:4].repeat(3, axis=-1))
    untouched = (masked != 128).all(axis=-1)
    assert 0.5 <= (~untouched).mean() < 0.6  # half is hidden, and some pixels are that grey
    np.testing.assert_array_equal(filled[untouched], original[untouched])


def without_label(source, place: int) -> ArraySource:
    labels = np.array(source.labels)
    labels[place] = -1
    return ArraySource(source.images, labels, source.class_names)


def test_an_unlabelled_image_is_not_evaluated():
    config, source, task, params = digits()
    source = without_label(source, HELD_OUT - 1)
    with pytest.raises(UserError, match=r'label -1 .*needs a label'):
        evaluate(config, source, task, state_of(params), 8, 64)


@functools.cache
def features_by_hand():
    _, source, task, params = digits()
    normal = (source.images.astype(np.float32) / np.float32(255) - task.mean) / task.std
    apply = jax.jit(functools.partial(task.model.apply, method='features'))
    return np.asarray(apply({'params': params}, normal.astype(np.float32)))


def encoded(source, devices: int, batch_size: int):
    config, _, task, params = digits()
    mesh = mesh_of(devices)
    encode = make_encode(task.features, mesh)
    return encode(params, eval_passes(config, source, mesh, batch_size)())


@pytest.mark.parametrize(('devices', 'batch_size'), [(1, 90), (3, 63), (8, 64), (8, 368)])
def test_every_example_is_encoded_once_and_in_order(devices, batch_size):
    source = digits_source('validation')
    features, labels = encoded(source, devices, batch_size)
    np.testing.assert_array_equal(labels, source.labels)
    np.testing.assert_allclose(features, features_by_hand(), atol=1e-5)


def test_an_unlabelled_image_is_not_probed():
    with pytest.raises(UserError, match='needs labels'):
        encoded(without_label(digits_source('validation'), 100), 8, 64)
