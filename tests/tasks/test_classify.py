"""The classification task: losses by hand, one result on any mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.metrics import sums_of
from helpers.tiny_runs import flat

from mae_jax.errors import UserError
from mae_jax.keys import key_for
from mae_jax.models.classifier import Classifier
from mae_jax.tasks.classify import Classify
from mae_jax.training import sharding as mesh_lib
from mae_jax.training.optimizer import decays_finetune, layer_scales, make_optimizer, make_schedule
from mae_jax.training.state import create_state, initial_state, jit_step, make_step

CLASSES = 7
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
AUGMENTED = dict(label_smoothing=0.1, mixup=0.8, cutmix=1.0, erase=0.5)


def colour_task(
    drop_path: float = 0.0, classes: int = CLASSES, depth: int = 1, **fields
) -> Classify:
    """Blocks on 8x8 colour images, and a head whose logits differ from the start."""
    model = Classifier(4, 64, depth, 4, classes, head_std=0.3, drop_path=drop_path)
    return Classify(model, (8, 8), MEAN, STD, **fields)


def colours(count: int, seed: int = 0, classes: int = CLASSES) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 8, 8, 3), np.uint8)
    return {'image': images, 'label': rng.integers(0, classes, count, np.int32)}


@functools.cache
def colour_params(classes: int = CLASSES):
    return jax.jit(colour_task(classes=classes).init)(jax.random.key(0))[0]


def apply_by_hand(task: Classify, params, images: np.ndarray, method: str | None = None):
    """Logits, or what `method` gives, of loaded images, normalised by NumPy, in one batch."""
    normal = (images / 255.0 - np.array(MEAN)) / np.array(STD)
    apply = jitted_apply(task.model, method)
    return np.asarray(apply({'params': params}, normal.astype(np.float32)), np.float64)


@functools.cache
def jitted_apply(model: Classifier, method: str | None):
    return jax.jit(functools.partial(model.apply, method=method))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_the_loss_is_the_cross_entropy_with_smoothed_labels():
    task, params, batch = colour_task(label_smoothing=0.1), colour_params(), colours(12)
    prepared = task.prepare(batch, jax.random.key(1))
    value, metrics, state = jax.jit(task.loss)(params, {}, prepared, jax.random.key(2))
    target = np.full((12, CLASSES), 0.1 / CLASSES)
    target[np.arange(12), batch['label']] += 0.9
    log = log_softmax(apply_by_hand(task, params, batch['image']))
    assert float(value) == pytest.approx(-(target * log).sum(axis=1).mean(), rel=1e-5)
    assert (metrics, state) == ({}, {})


@pytest.mark.parametrize('classes', [CLASSES, 3])
def test_evaluation_is_plain_cross_entropy_and_hits_among_the_best_five(classes):
    """Whatever training does to images and labels; three classes are all among the best five."""
    task = colour_task(drop_path=0.5, classes=classes, per_class=True, **AUGMENTED)
    params, batch = colour_params(classes), colours(64, classes=classes)
    labels = batch['label']
    sums = sums_of(jax.jit(task.evaluate)(params, {}, batch | {'valid': np.ones(64, bool)}, 0))
    logits = apply_by_hand(task, params, batch['image'])
    ranks = np.argsort(-logits, axis=1)
    first = ranks[:, 0] == labels
    assert sums['top1'] == first.sum()
    assert 0 < first.sum() < 64
    assert sums['top5'] == (ranks[:, :5] == labels[:, None]).sum()
    assert (sums['top5'] == 64) == (classes == 3)
    assert sums['count'] == 64
    expected = -log_softmax(logits)[np.arange(64), labels].sum()
    assert float(sums['loss']) == pytest.approx(expected, rel=1e-5)
    np.testing.assert_array_equal(sums['class_hits'], np.bincount(labels[first], minlength=classes))
    np.testing.assert_array_equal(sums['class_count'], np.bincount(labels, minlength=classes))


def test_rows_that_only_fill_a_batch_count_nothing_whatever_is_in_them():
    task, params = colour_task(per_class=True), colour_params()
    batch = colours(16)
    batch['image'] = batch['image'].astype(np.float32)
    valid = np.arange(16) % 4 != 1
    rows = {name: array[valid] for name, array in batch.items()}
    expected = sums_of(jax.jit(task.evaluate)(params, {}, rows | {'valid': np.ones(12, bool)}, 0))
    batch['image'][~valid] = np.array([np.nan, np.inf, -np.inf, 1e30])[:, None, None, None]
    batch['label'][~valid] = -1
    sums = sums_of(jax.jit(task.evaluate)(params, {}, batch | {'valid': valid}, 0))
    assert sums.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-5, err_msg=name)
    assert sums['count'] == sums['class_count'].sum() == 12


@pytest.mark.parametrize(('label', 'message'), [(-1, '-1'), (CLASSES, str(CLASSES))])
def test_a_label_that_is_none_is_refused_but_where_a_row_only_fills_a_batch(label, message):
    batch = colours(4)
    batch['label'][2] = label
    with pytest.raises(UserError, match=f'label {message} .*{CLASSES} classes'):
        colour_task().check(batch)
    colour_task().check(batch | {'valid': np.arange(4) != 2})


def test_images_are_normalised_then_erased_then_mixed():
    """Mixing is undone by what the targets say of it; what is left is one box in each image."""
    task = colour_task(label_smoothing=0.1, mixup=0.8, erase=1.0)
    task = dataclasses.replace(task, image_size=(32, 32), std=(0.01,) * 3)
    classes = np.arange(6, dtype=np.int32)
    grey = np.rint(np.array(MEAN) * 255).astype(np.uint8)
    batch = {'image': np.tile(grey, (6, 32, 32, 1)), 'label': classes}
    prepared = jax.tree.map(np.asarray, jax.jit(task.prepare)(batch, jax.random.key(4)))
    targets = (prepared['target'] - 0.1 / CLASSES) / 0.9  # without smoothing
    lam = targets[0, 0]
    expected = np.zeros((6, CLASSES))
    expected[classes, classes] += lam
    expected[classes, classes[::-1]] += 1 - lam
    np.testing.assert_allclose(targets, expected, atol=1e-5)
    assert min(lam, 1 - lam) > 0.05 and abs(2 * lam - 1) > 0.3  # else this shows nothing

    mixed = prepared['image']
    erased = (lam * mixed - (1 - lam) * mixed[::-1]) / (2 * lam - 1)
    normal = (grey / 255 - np.array(MEAN)) / 0.01
    touched = np.abs(erased - normal).max(axis=-1) > 1e-3
    for image, mask in zip(erased, touched, strict=True):
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        box = np.ix_(np.arange(rows[0], rows[-1] + 1), np.arange(columns[0], columns[-1] + 1))
        assert mask.sum() == mask[box].size  # filled, and nothing outside it
        assert 0.8 < image[box].std() < 1.2  # noise after, not before, division by 0.01


@pytest.mark.slow
def test_the_key_of_a_step_decides_all_that_is_random():
    task = colour_task(drop_path=0.1, **AUGMENTED)
    prepare, batch = jax.jit(task.prepare), colours(64)
    first, again, other_step, other_seed = (
        prepare(batch, key_for(*at))
        for at in ((5, 'train', 1),) * 2 + ((5, 'train', 2), (6, 'train', 1))
    )
    assert first.keys() == {'image', 'target', 'path_noise'}
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
        assert (array != other_step[name]).any()
        assert (array != other_seed[name]).any()


@functools.cache
def one_update(accumulate: int):
    """Parameters after one step of plain descent, everything random switched on, and the loss."""
    task, tx = colour_task(drop_path=0.5, depth=2, **AUGMENTED), optax.sgd(1.0)
    state = jax.jit(lambda: initial_state(task, tx, seed=2))()
    step = jax.jit(make_step(task, tx, seed=2, accumulate=accumulate))
    after, metrics = step(state, colours(64))
    return flat(after.params), float(metrics['loss'])


@pytest.mark.slow
@pytest.mark.parametrize('accumulate', [2, 4])
def test_accumulation_changes_nothing_of_what_is_drawn(accumulate):
    (params, loss), (expected, whole) = one_update(accumulate), one_update(1)
    assert loss == pytest.approx(whole, rel=1e-6)
    for name, value in expected.items():
        np.testing.assert_allclose(params[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


PROBE_MODEL = dict(patch_size=4, width=16, depth=1, heads=2, num_classes=CLASSES)


@pytest.mark.parametrize(('devices', 'micro_batches'), [(1, 1), (8, 1), (8, 2)])
def test_a_probes_batch_norm_sees_the_whole_batch(devices, micro_batches):
    """Running statistics and the head's update are NumPy's, from the features of all rows."""
    model = Classifier(**PROBE_MODEL, pool='cls', batch_norm=True, head_std=0.3, frozen_blocks=1)
    task = Classify(model, (8, 8), MEAN, STD, trained='head', head_micro_batches=micro_batches)
    batch, tx = colours(32), optax.sgd(1.0)
    batch['image'] = batch['image'] // np.arange(1, 33, dtype=np.uint8)[:, None, None, None]

    mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
    state = create_state(task, tx, mesh, seed=4)
    before = jax.tree.map(np.array, state.params)
    features = apply_by_hand(task, before, batch['image'], 'features')
    step = jit_step(make_step(task, tx, seed=4), mesh, state)
    after, metrics = step(state, mesh_lib.put_batch(mesh, batch))

    (running,) = after.model_state['batch_stats'].values()
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(running['mean'], 0.1 * features.mean(axis=0))
    close(running['var'], 0.9 + 0.1 * features.var(axis=0, ddof=1))
    normal = (features - features.mean(axis=0)) / np.sqrt(features.var(axis=0) + 1e-6)
    head = before['head']
    log = log_softmax(normal @ head['kernel'] + head['bias'])
    error = (np.exp(log) - np.eye(CLASSES)[batch['label']]) / 32
    close(after.params['head']['kernel'], head['kernel'] - normal.T @ error)
    close(after.params['head']['bias'], head['bias'] - error.sum(axis=0))
    close(metrics['loss'], -log[np.arange(32), batch['label']].mean())
    jax.tree.map(np.testing.assert_array_equal, after.params['encoder'], before['encoder'])


def test_evaluation_of_a_probe_normalises_by_the_running_statistics():
    model = Classifier(**PROBE_MODEL, pool='cls', batch_norm=True, head_std=0.3, frozen_blocks=1)
    task = Classify(model, (8, 8), MEAN, STD, trained='head')
    params, state = jax.jit(task.init)(jax.random.key(0))
    rng, batch = np.random.default_rng(0), colours(20)
    running = {'mean': rng.normal(size=16), 'var': rng.uniform(0.5, 2, 16)}
    state = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), state,
                         {'batch_stats': {'feature_norm': running}})  # fmt: skip
    rows = batch | {'valid': np.ones(20, bool)}
    sums = sums_of(jax.jit(task.evaluate)(params, state, rows, 0))
    features = apply_by_hand(task, params, batch['image'], 'features')
    normal = (features - running['mean']) / np.sqrt(running['var'] + 1e-6)
    head = jax.tree.map(np.asarray, params['head'])
    log = log_softmax(normal @ head['kernel'] + head['bias'])
    assert sums['top1'] == (log.argmax(axis=1) == batch['label']).sum()
    assert float(sums['loss']) == pytest.approx(-log[np.arange(20), batch['label']].sum(), rel=1e-5)
    # Of cached features the same.
    cached = dataclasses.replace(task, caches_features=True)
    rows |= {'image': features.astype(np.float32)}
    again = sums_of(jax.jit(cached.evaluate)(params, state, rows, 0))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), sums, again)


STEPS, ROWS = 20, 64


@functools.cache
def fine_tuning_losses(devices: int, fsdp: int = 1) -> np.ndarray:
    """Losses of every step of a fine-tuning with all that it has."""
    task = colour_task(drop_path=0.3, depth=2, **AUGMENTED)
    schedule = make_schedule(peak=1e-3, total_steps=STEPS, warmup_steps=5, minimum=1e-6)
    scales = functools.partial(layer_scales, decay=0.65, depth=2)
    options = dict(b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.05)
    tx = make_optimizer('adamw', schedule, decay_mask=decays_finetune, scales=scales, **options)
    mesh = mesh_lib.make_mesh(fsdp, jax.devices()[:devices])
    state = create_state(task, tx, mesh, seed=3)
    step = jit_step(make_step(task, tx, seed=3), mesh, state)
    losses = []
    for number in range(STEPS):
        state, metrics = step(state, mesh_lib.put_batch(mesh, colours(ROWS, number)))
        losses.append(float(metrics['loss']))
    kernel = state.params['encoder']['blocks']['block_0']['mlp']['fc1']['kernel']
    assert kernel.addressable_shards[0].data.size == kernel.size // fsdp
    return np.array(losses)


@pytest.mark.slow
@pytest.mark.parametrize('fsdp', [1, 4, 8])
def test_eight_devices_fine_tune_as_one(fsdp):
    np.testing.assert_allclose(fine_tuning_losses(8, fsdp), fine_tuning_losses(1), atol=1e-5)
