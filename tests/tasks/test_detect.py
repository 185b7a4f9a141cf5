"""The detection task: its loss, what it draws and evaluates, one result on any mesh."""

import functools

import jax
import numpy as np
import optax
import pytest
from helpers.detections import Truth as Annotations
from helpers.detectors import BOXES, MEAN, SIZE, STD, images, make_task, training_batch
from helpers.drawings import cells_of
from helpers.tiny_runs import flat

from mae_jax.evaluation.exact import make_evaluate
from mae_jax.keys import key_for
from mae_jax.models.detection.detector import Noise, Truth
from mae_jax.training import sharding as mesh_lib
from mae_jax.training.state import TrainState, create_state, jit_step, make_step


@functools.cache
def parameters():
    """Random ones, with a bias towards objects, of which some are found."""
    task = make_task()
    shapes = jax.eval_shape(task.init, jax.random.key(0))[0]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: (0.2 * rng.normal(size=x.shape)).astype(np.float32), shapes)


def test_the_loss_is_the_sum_of_the_models_over_images_without_their_padding():
    task, batch = make_task(), training_batch(4)
    prepared = jax.jit(task.prepare)(batch, key_for(3, 'train', 0))
    value, metrics, state = jax.jit(task.loss)(parameters(), {}, prepared, jax.random.key(0))
    normal = ((batch['image'] / 255.0 - MEAN) / STD).astype(np.float32)
    for row, (height, width) in enumerate(batch['size']):
        normal[row, height:], normal[row, :, width:] = 0, 0
    truth = Truth(*(batch[name] for name in ('size', 'boxes', 'classes', 'masks')))
    noise = Noise(prepared['anchors_noise'], prepared['rois_noise'])
    apply = jax.jit(functools.partial(task.model.apply, method='losses'))
    expected = apply({'params': parameters()}, normal, truth, noise)
    assert metrics.keys() == {f'{name}_loss' for name in expected}
    for name, each in expected.items():
        assert float(metrics[f'{name}_loss']) == pytest.approx(float(each), rel=1e-4), name
        assert float(each) > 0, name
    assert float(value) == pytest.approx(sum(map(float, expected.values())), rel=1e-4)
    assert state == {}


def test_the_key_of_a_step_decides_what_is_drawn():
    task, batch = make_task(drop=0.1), training_batch(4)
    prepare = jax.jit(task.prepare)
    first, again, other = (prepare(batch, key_for(5, 'train', step)) for step in (1, 1, 2))
    drawn = {name for name in first if name.endswith('noise')}
    assert drawn == {'anchors_noise', 'rois_noise', 'path_noise'}
    for name in drawn:
        assert len(first[name]) == 4
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any()
    shapes = jax.eval_shape(make_task().prepare, batch, key_for(0, 'train', 0))
    assert 'path_noise' not in shapes and 'label' not in shapes


@pytest.mark.parametrize(
    'trained, learning',
    [
        ('all', {'encoder', 'pyramid', 'proposals', 'box_head', 'mask_head'}),
        ('head', {'pyramid', 'proposals', 'box_head', 'mask_head'}),
        (1.0, {'encoder', 'pyramid', 'proposals', 'box_head', 'mask_head'}),
    ],
)
def test_what_learns(trained, learning):
    task = make_task(trained=trained)
    names = [name for name in flat(parameters()) if task.is_trained(name)]
    assert {name.split('/')[0] for name in names} == learning
    blocks = {name.split('/')[2] for name in names if name.startswith('encoder/blocks/')}
    assert blocks == {'all': {'block_0', 'block_1'}, 'head': set(), 1.0: {'block_1'}}[trained]
    assert ('encoder/pos_embed' in names) == (trained == 'all')


def batches(mesh, batch_size: int):
    """Seven images at half the size of their files, in batches of this size."""
    whole = images(7, 4)
    for first in range(0, 7, batch_size):
        rows = np.arange(first, first + batch_size)
        batch = {name: array[rows % 7] for name, array in whole.items()}
        index = np.where(rows < 7, rows, -1).astype(np.int32)
        batch |= {'index': index, 'valid': rows < 7, 'original_size': 2 * batch['size']}
        yield mesh_lib.put_batch(mesh, batch)


@functools.cache
def evaluated(devices: int, batch_size: int):
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
    evaluate = make_evaluate(make_task(), mesh, lambda: batches(mesh, batch_size), batch_size)
    return evaluate(TrainState(np.zeros((), np.int32), parameters(), {}, ()))


@pytest.mark.slow
@pytest.mark.parametrize('devices, batch_size', [(1, 7), (1, 2), (8, 8)])
def test_every_image_is_detected_in_once_on_any_devices(devices, batch_size):
    found, expected = evaluated(devices, batch_size), evaluated(1, 4)
    assert found.images == expected.images == list(range(7))
    assert len(found.records) == len(expected.records) > 7
    for ours, other in zip(found.records, expected.records, strict=True):
        assert ours['image_id'] == other['image_id'] and ours['score'] == pytest.approx(
            other['score'], abs=1e-5
        )
        np.testing.assert_allclose(ours['bbox'], other['bbox'], atol=1e-3)


def test_metrics_and_result_file_of_an_evaluation():
    sizes = [tuple(2 * side for side in size) for size in images(7, 4)['size'].tolist()]
    box = {'bbox': [4, 4, 20, 20], 'area': 400, 'segmentation': [[4, 4, 24, 4, 24, 24, 4, 24]]}
    source = Annotations(sizes, [{'image_id': 7, 'category_id': 2} | box])
    task, found = make_task(), evaluated(1, 4)
    metrics = task.conclude(found, source)
    assert metrics.examples == 7 and 0 <= metrics.compute()['box_ap'] < 1
    (name, text), *_ = task.result_files(metrics).items()
    assert name == 'detections.json' and text.count('"segmentation"') == len(found.records)


@functools.cache
def one_update(devices: int, fsdp: int = 1):
    """Loss and parameters after one step of plain descent, everything random switched on."""
    task, tx = make_task(drop=0.5), optax.sgd(0.1)
    mesh = mesh_lib.make_mesh(fsdp, devices=jax.devices()[:devices])
    state = create_state(task, tx, mesh, seed=2)
    step = jit_step(make_step(task, tx, seed=2), mesh, state)
    after, metrics = step(state, mesh_lib.put_batch(mesh, training_batch(8)))
    return flat(after.params), float(metrics['loss'])


@pytest.mark.slow
@pytest.mark.parametrize('fsdp', [1, 8])
def test_eight_devices_train_as_one(fsdp):
    (params, loss), (expected, whole) = one_update(8, fsdp), one_update(1)
    assert loss == pytest.approx(whole, rel=1e-5)
    for name, value in expected.items():
        assert np.isfinite(value).all(), name
        np.testing.assert_allclose(params[name], value, atol=1e-5, err_msg=name)


def test_a_picture_has_the_valid_images_without_padding():
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    batch = jax.tree.map(np.asarray, next(iter(batches(mesh, 2))))
    batch['valid'] = np.array([True, False])
    picture = make_task().make_draw(batch, mesh)(parameters(), {})
    height, width = batch['size'][0]
    factor = -(-320 // min(height, width))
    shown, _ = cells_of(picture, 1, 2, factor * height, factor * width)
    np.testing.assert_array_equal(shown[0, ::factor, ::factor], batch['image'][0, :height, :width])


def test_what_it_costs_is_counted_with_what_learns():
    frozen, whole = make_task(frozen=2, trained='head'), make_task()
    assert BOXES < SIZE and 0 < frozen.flops_per_image() < whole.flops_per_image()
    with_encoder = whole.flops_per_image() - frozen.flops_per_image()
    width, tokens = 16, 16
    blocks = 2 * (24 * tokens * width**2 + 4 * tokens**2 * width)
    assert with_encoder == pytest.approx(2 * blocks)
