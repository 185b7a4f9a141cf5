"""The segmentation task: loss and metrics by hand in NumPy, one result on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.slow import slow_after
from helpers.tiny_runs import flat

from mae_jax.evaluation.exact import count_examples, make_evaluate
from mae_jax.keys import key_for
from mae_jax.models.segmentation.linear import LinearHead
from mae_jax.models.segmentation.segmenter import Segmenter
from mae_jax.models.segmentation.upernet import FCNHead, UperHead
from mae_jax.models.vit import Encoder
from mae_jax.tasks.segment import Segment
from mae_jax.tasks.segment_metrics import Metrics
from mae_jax.training import sharding as mesh_lib
from mae_jax.training.state import TrainState, create_state, jit_step, make_step

CLASSES, SIZE, PATCH = 5, (16, 16), 4
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
COLOURS = tuple((50 * c, 255 - 50 * c, 9) for c in range(CLASSES))


def make_task(
    upernet: bool = False, depth: int = 2, drop: float = 0.0, frozen: int = 0, **fields
) -> Segment:
    """Blocks on crops of 16 pixels, and heads."""
    encoder = Encoder(PATCH, 16, depth, 2, frozen_blocks=frozen)
    head, auxiliary, taps = LinearHead(CLASSES), None, (depth - 1,)
    if upernet:
        head, taps = UperHead(CLASSES, 8, drop), (0, 0, depth - 1, depth - 1)
        auxiliary = FCNHead(CLASSES, 6, dropout=drop)
    model = Segmenter(encoder, head, auxiliary, taps, final_norm=not upernet, drop_path=drop)
    fields = dict(stride=(8, 12), colours=COLOURS) | fields
    return Segment(model, CLASSES, SIZE, mean=MEAN, std=STD, **fields)


@functools.cache
def variables(upernet: bool = False):
    """Parameters and running statistics, none at a value that would hide a mistake."""
    task = make_task(upernet)
    params, state = jax.eval_shape(task.init, jax.random.key(0))
    rng = np.random.default_rng(1)

    def draw(path, x):
        scale = 0.1 if path[-1].key == 'bias' else 1.0
        return (scale * rng.normal(size=x.shape)).astype(np.float32)

    params = jax.tree.map_with_path(draw, params)
    state = jax.tree.map_with_path(lambda path, x: np.exp(0.3 * draw(path, x)), state)
    return params, state


def crops(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A training batch; a third of its pixels have no class."""
    rng = np.random.default_rng(seed)
    mask = rng.integers(0, CLASSES * 3 // 2, (count, *SIZE))
    return {
        'image': rng.integers(0, 256, (count, *SIZE, 3), np.uint8),
        'mask': np.where(mask < CLASSES, mask, 255).astype(np.uint8),
        'label': np.full(count, -1, np.int32),
    }


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize('upernet', [False, True])
def test_the_loss_is_the_mean_cross_entropy_of_labelled_pixels(upernet):
    task, (params, state), batch = make_task(upernet), variables(upernet), crops(3)
    batch['mask'][1] = 255  # one image has no label at all
    value, metrics, after = jax.jit(task.loss)(
        params, state, task.prepare(batch, jax.random.key(0)), jax.random.key(0)
    )
    images = ((batch['image'] / 255.0 - MEAN) / STD).astype(np.float32)
    apply = functools.partial(task.model.apply, train=True, mutable='batch_stats')
    logits, _ = jax.jit(apply)({'params': params} | state, images)
    counted = batch['mask'] < CLASSES
    place = *np.nonzero(counted), batch['mask'][counted]
    losses = [
        -log_softmax(np.asarray(x, np.float64))[place].mean() for x in logits if x is not None
    ]
    assert len(losses) == 1 + upernet
    expected = losses[0] + (0.4 * losses[1] if upernet else 0)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    if upernet:
        assert float(metrics['head_loss']) == pytest.approx(losses[0], rel=1e-5)
        assert float(metrics['auxiliary_loss']) == pytest.approx(losses[1], rel=1e-5)
    assert jax.tree.structure(after) == jax.tree.structure(state)


SIZES = [(16, 16), (23, 16), (16, 40), (33, 29), (23, 24), (20, 16), (12, 30)]
"""Of images; the last is lower than a window."""


@functools.cache
def held_out() -> list[tuple[np.ndarray, np.ndarray]]:
    """Images, and masks of other sizes; one has no label, and one class never occurs."""
    rng, examples = np.random.default_rng(2), []
    for number, size in enumerate(SIZES):
        mask_size = [(size[0] * 3 // 2, size[1] * 2), (size[0] - 3, size[1] - 1), size][number % 3]
        mask = rng.integers(0, 6, mask_size)
        mask = np.where(mask < 4, mask, 255).astype(np.uint8)
        if number == 3:
            mask[:] = 255
        examples.append((rng.integers(0, 256, (*size, 3), np.uint8), mask))
    return examples


def batches(mesh, batch_size: int):
    """Two canvases, as the loader makes them: images of a batch share one."""
    groups = [[0, 1, 4, 5], [2, 3, 6]]
    canvases = [((24, 26), (36, 48)), ((33, 40), (50, 80))]
    for members, (canvas, mask_canvas) in zip(groups, canvases, strict=True):
        for first in range(0, len(members), batch_size):
            rows = members[first : first + batch_size]
            batch = {
                'image': np.full((batch_size, *canvas, 3), np.rint(255 * np.array(MEAN)), np.uint8),
                'size': np.tile(np.int32(SIZE), (batch_size, 1)),
                'mask': np.full((batch_size, *mask_canvas), 255, np.uint8),
                'mask_size': np.tile(np.int32(SIZE), (batch_size, 1)),
                'label': np.full(batch_size, -1, np.int32),
                'valid': np.arange(batch_size) < len(rows),
            }
            batch['mask'][len(rows) :] = 1  # rows that only fill up, whatever is in them
            for row, number in enumerate(rows):
                for name, array in zip(('image', 'mask'), held_out()[number], strict=True):
                    height, width = array.shape[:2]
                    batch[name][row, :height, :width] = array
                    batch['size' if name == 'image' else 'mask_size'][row] = height, width
            yield mesh_lib.put_batch(mesh, batch)


@functools.cache
def logits_by_hand() -> list[np.ndarray]:
    """Of each image: windows one by one, averaged, then resized pixel by pixel."""
    task, (params, state) = make_task(), variables()
    apply = jax.jit(task.model.apply)
    results = []
    for image, mask in held_out():
        image = (image / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
        height, width = image.shape[:2]
        padding = [(0, max(16 - n, 0)) for n in (height, width)]
        image = np.pad(image, (*padding, (0, 0)))
        total, count = (np.zeros((*image.shape[:2], n)) for n in (CLASSES, 1))
        # Strides of 8 and 12, the last window at the border.
        tops, lefts = (
            sorted({min(i * s, n - 16) for i in range(9) if (i - 1) * s < n - 16 or i == 0})
            for n, s in zip(image.shape, (8, 12), strict=False)
        )
        for top in tops:
            for left in lefts:
                place = np.s_[top : top + 16, left : left + 16]
                window = image[place][None].astype(np.float32)
                total[place] += np.asarray(apply({'params': params} | state, window).head)[0]
                count[place] += 1
        logits = (total / count)[:height, :width]
        results.append(resized_by_hand(logits, mask.shape))
    return results


def resized_by_hand(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    for axis, new in enumerate(size):
        old = logits.shape[axis]
        place = np.maximum((np.arange(new) + 0.5) * old / new - 0.5, 0)
        low = np.minimum(place.astype(int), old - 1)
        high = np.minimum(low + 1, old - 1)
        share = (place - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        logits = logits.take(low, axis) * (1 - share) + logits.take(high, axis) * share
    return logits


@functools.cache
def by_hand() -> dict[str, np.ndarray]:
    """Counts of every class, a pixel at a time as far as NumPy goes, and the mean loss."""
    confusion, losses = np.zeros((CLASSES, CLASSES), int), []
    for logits, (_, mask) in zip(logits_by_hand(), held_out(), strict=True):
        best = np.sort(logits, axis=-1)
        assert (best[..., -1] - best[..., -2]).min() > 1e-5  # no rounding decides a class
        counted = mask < CLASSES
        np.add.at(confusion, (mask[counted], logits.argmax(axis=-1)[counted]), 1)
        if counted.any():
            log = log_softmax(logits[counted])
            losses.append(-log[np.arange(len(log)), mask[counted]].mean())
    hits, labelled, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    union = labelled + predicted - hits
    iou = np.where(union > 0, hits / np.maximum(union, 1), np.nan)
    return {
        'hits': hits,
        'labelled': labelled,
        'predicted': predicted,
        'iou': iou,
        'miou': iou[union > 0].mean(),
        'accuracy': hits.sum() / confusion.sum(),
        'loss': np.mean(losses),
        'images': len(losses),
    }


def evaluated(devices: int, batch_size: int) -> Metrics:
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
    task, (params, state) = make_task(), variables()
    evaluate = make_evaluate(task, mesh, lambda: batches(mesh, batch_size), batch_size)
    return evaluate(TrainState(jnp.zeros((), jnp.int32), params, state, ()))


# The groups have 4 and 3 images: most batches are filled up.
@pytest.mark.parametrize(
    ('devices', 'batch_size'), slow_after(3, [(1, 4), (3, 3), (8, 8), (1, 1), (3, 6)])
)
def test_metrics_are_those_of_numpy_on_any_devices(devices, batch_size):
    metrics, expected = evaluated(devices, batch_size), by_hand()
    for name in ('miou', 'pixel_accuracy', 'per_class'):
        counts = getattr(metrics, name)
        np.testing.assert_array_equal(counts.hits, expected['hits'])
        np.testing.assert_array_equal(counts.predicted, expected['predicted'])
        np.testing.assert_array_equal(counts.count, expected['labelled'])
    values = metrics.compute()
    np.testing.assert_array_equal(values['per_class'], expected['iou'])
    assert values['miou'] == pytest.approx(expected['miou'], rel=1e-12)
    assert values['pixel_accuracy'] == pytest.approx(expected['accuracy'], rel=1e-12)
    assert float(values['loss']) == pytest.approx(expected['loss'], rel=1e-5)
    assert count_examples(metrics) == expected['images'] == len(SIZES) - 1
    assert expected['labelled'][4] == 0 and (expected['predicted'] > 30).all()


@pytest.mark.parametrize('devices', [1, 8])
def test_batch_norm_sees_the_whole_batch(devices):
    """Running statistics of the linear head are NumPy's, of the tokens of all patches."""
    task, batch = make_task(trained='head', frozen=2), crops(8)
    batch['image'] //= np.arange(1, 9, dtype=np.uint8)[:, None, None, None]
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
    state = create_state(task, optax.sgd(1.0), mesh, seed=4)
    before = jax.tree.map(np.array, state.params)
    images = ((batch['image'] / 255.0 - MEAN) / STD).astype(np.float32)
    (tokens,) = jax.jit(functools.partial(task.model.apply, method='maps'))(
        {'params': before}, images
    )
    step = jit_step(make_step(task, optax.sgd(1.0), seed=4), mesh, state)
    after, _ = step(state, mesh_lib.put_batch(mesh, batch))
    tokens = np.asarray(tokens).reshape(-1, 16)
    running = after.model_state['batch_stats']['head']['norm']
    np.testing.assert_allclose(running['mean'], 0.1 * tokens.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(running['var'], 0.9 + 0.1 * tokens.var(axis=0, ddof=1), rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after.params['encoder'], before['encoder'])
    assert not np.allclose(
        after.params['head']['classifier']['kernel'], before['head']['classifier']['kernel']
    )


@functools.cache
def one_update(devices: int):
    """Loss and parameters after one step of plain descent, everything random switched on."""
    task, tx = make_task(upernet=True, drop=0.5), optax.sgd(1.0)
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
    state = create_state(task, tx, mesh, seed=2)
    step = jit_step(make_step(task, tx, seed=2), mesh, state)
    after, metrics = step(state, mesh_lib.put_batch(mesh, crops(8)))
    return flat(after.params), float(metrics['loss'])


@pytest.mark.slow
def test_eight_devices_train_as_one():
    (params, loss), (expected, whole) = one_update(8), one_update(1)
    assert loss == pytest.approx(whole, rel=1e-5)
    for name, value in expected.items():
        assert np.isfinite(value).all(), name
        np.testing.assert_allclose(params[name], value, atol=1e-4, err_msg=name)


def test_the_key_of_a_step_decides_what_is_dropped():
    task, batch = make_task(upernet=True, drop=0.1), crops(4)
    prepare = jax.jit(task.prepare)
    first, again, other = (prepare(batch, key_for(5, 'train', step)) for step in (1, 1, 2))
    noise = {'head_noise': (4, 8), 'auxiliary_noise': (4, 6), 'path_noise': (4, 2, 2)}
    assert first.keys() == {'image', 'mask', *noise}
    for name, shape in noise.items():
        assert first[name].shape == shape
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any()
    assert prepare(batch, key_for(5, 'train', 1)).keys() == first.keys()
    assert make_task().prepare(batch, key_for(0, 'train', 0)).keys() == {'image', 'mask'}


def test_dropped_branches_and_channels_change_the_loss():
    """Each kind of noise reaches what it is for."""
    task, (params, state) = make_task(upernet=True, drop=0.5), variables(True)
    loss = jax.jit(task.loss)
    prepared = task.prepare(crops(4), jax.random.key(0))
    kept = {n: jnp.ones_like(x) for n, x in prepared.items() if n.endswith('noise')}
    key = jax.random.key(0)
    whole, metrics, _ = loss(params, state, prepared | kept, key)
    for name in kept:
        value, changed, _ = loss(params, state, prepared | kept | {name: prepared[name]}, key)
        assert float(value) != float(whole)
        assert (changed['head_loss'] != metrics['head_loss']) == (name != 'auxiliary_noise')
        assert (changed['auxiliary_loss'] != metrics['auxiliary_loss']) == (name != 'head_noise')


def test_a_picture_has_image_truth_and_prediction_of_the_valid_rows():
    from helpers.drawings import cells_of

    mesh = mesh_lib.make_mesh(devices=jax.devices()[:2])
    task, (params, state) = make_task(), variables()
    batch = jax.tree.map(np.asarray, next(iter(batches(mesh_lib.make_mesh(), 8))))
    picture = task.make_draw(batch, mesh)(params, state)
    image, truth, prediction = cells_of(picture, 4, 3, 23, 24)
    for row, number in enumerate([0, 1, 4, 5]):
        height, width = SIZES[number]
        pixels, mask = held_out()[number]
        np.testing.assert_array_equal(image[row, :height, :width], pixels)
        assert (image[row, height:] == 255).all() and (prediction[row, :, width:] == 255).all()
        if mask.shape == (height, width):
            table = np.array([*COLOURS, (255,) * 3])
            expected = table[np.minimum(mask, CLASSES)]
            np.testing.assert_array_equal(truth[row, :height, :width], expected)
            classes = logits_by_hand()[number].argmax(axis=-1)
            np.testing.assert_array_equal(prediction[row, :height, :width], table[classes])


def test_operations_are_counted_from_the_sizes_of_the_layers():
    """A linear head on a frozen encoder: the forward pass, and three times the head's."""
    tokens = 17
    encoder = 2 * tokens * 48 * 16 + 2 * (24 * tokens * 16**2 + 4 * tokens**2 * 16)
    head = 2 * 16 * 16 * CLASSES
    frozen = make_task(trained='head', frozen=2)
    assert frozen.flops_per_image() == encoder + 3 * head
    blocks = 2 * (24 * tokens * 16**2 + 4 * tokens**2 * 16)
    assert make_task().flops_per_image() == encoder + 2 * blocks + 3 * head


def test_operations_of_upernet_are_those_of_its_convolutions():
    """Of a map of 4 x 4 patches of width 16, heads of widths 8 and 6; pyramid 16, 8, 4, 2."""
    doubled = 4 * 16 * 16 * (16 + 64 + 16)
    pooling = 16 * 8 * (1 + 4 + 9 + 36) + 9 * (16 + 4 * 8) * 8 * 4
    lateral = (16 * 8 + 9 * 8 * 8) * (256 + 64 + 16)
    last = (9 * 32 * 8 + 8 * CLASSES) * 256
    head = UperHead(CLASSES, 8).flops((4, 4), 16, 4)
    assert head == pytest.approx(2 * (doubled + pooling + lateral + last))
    assert FCNHead(CLASSES, 6).flops((4, 4), 16, 4) == 2 * 16 * (9 * 16 * 6 + 6 * CLASSES)
