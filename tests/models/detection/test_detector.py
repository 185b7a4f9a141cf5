"""The whole detector: losses, detections, what it compiles, what it costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.extend.core import jaxprs_in_params
from jax.sharding import NamedSharding, PartitionSpec

from mae_jax.errors import UserError
from mae_jax.models.detection.boxes import decode, iou
from mae_jax.models.detection.detector import Detector, Noise, Truth
from mae_jax.models.detection.options import DetectorOptions
from mae_jax.models.detection.proposals import propose
from mae_jax.models.options import EncoderOptions
from mae_jax.models.vit import Encoder
from mae_jax.training.optimizer import layer_scales
from mae_jax.training.sharding import make_mesh, on_mesh

SIZE, CLASSES, BOXES = (48, 64), 3, 4
OPTIONS = DetectorOptions(
    channels=8,
    anchor_sizes=(8.0, 16.0, 24.0, 32.0, 48.0),
    proposal_convolutions=1,
    anchor_samples=32,
    before_nms=20,
    before_nms_train=30,
    after_nms=24,
    roi_samples=16,
    box_size=3,
    mask_size=4,
    box_convolutions=1,
    mask_convolutions=1,
    box_width=16,
    detections=10,
)
OPTIONS_OF_ENCODER = EncoderOptions('vitdet', cls_token=False, window=2, global_blocks=(1,))
MODEL = Detector(Encoder(8, 16, 2, 2, options=OPTIONS_OF_ENCODER), CLASSES, OPTIONS, drop_path=0.1)


@functools.cache
def params() -> dict:
    """Random ones, for which no two scores are nearly equal."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), images(0))['params']
    rng = np.random.default_rng(0)
    flat = traverse_util.flatten_dict(shapes)
    drawn = {path: rng.normal(0, 0.3, x.shape).astype('f') for path, x in flat.items()}
    return traverse_util.unflatten_dict(drawn)


def images(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, *SIZE, 3)).astype('f')


def batch(seed: int, counts: tuple[int, int]) -> tuple[np.ndarray, Truth, Noise]:
    """Images with so many objects each."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40, (2, BOXES, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(6, 20, (2, BOXES, 2))], -1)
    given = np.arange(BOXES) < np.array(counts)[:, None]
    boxes = np.where(given[..., None], boxes, 0).astype('f')
    classes = np.where(given, rng.integers(0, CLASSES, (2, BOXES)), -1)
    masks = rng.integers(0, 2, (2, BOXES, 8, 8)).astype(np.uint8)
    size = np.stack([SIZE, rng.integers(20, 48, 2)]).astype(np.int32)
    shapes = MODEL.noise_shapes(2, SIZE, BOXES)
    noise = Noise(**{name: rng.uniform(size=shape).astype('f') for name, shape in shapes.items()})
    return images(seed), Truth(size, boxes, classes, masks), noise


def total(params, images, truth, noise):
    losses = MODEL.apply({'params': params}, images, truth, noise, method='losses')
    return sum(losses.values()), losses


step = jax.jit(jax.value_and_grad(total, has_aux=True))


@pytest.mark.slow
def test_one_compilation_learns_from_whatever_is_in_the_images():
    """Many objects, none in one image, none at all; every parameter has a gradient."""
    for seed, counts in enumerate([(4, 2), (0, 3), (0, 0)]):
        (loss, losses), gradient = step(params(), *batch(seed, counts))
        assert losses.keys() == {'objectness', 'proposal_box', 'class', 'box', 'mask'}
        assert np.isfinite(loss)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))
        without = [name for name in ('proposal_box', 'box', 'mask') if losses[name] == 0]
        assert len(without) == (0 if any(counts) else 3)
        if all(counts):
            flat = traverse_util.flatten_dict(gradient, sep='/')
            assert not [name for name, x in flat.items() if not np.abs(x).max() > 0]
    assert step._cache_size() == 1


def test_neither_pass_scatters():
    """As the whole step is given to the compiler."""
    text = step.lower(params(), *batch(0, (4, 2))).as_text()
    assert 'stablehlo.convolution' in text
    assert 'scatter' not in text


@pytest.mark.slow
def test_four_devices_compute_the_same_losses_and_gather_no_rows():
    """But for sums over the batch nothing passes from device to device."""
    halves = batch(0, (4, 2)), batch(1, (0, 3))
    inputs = jax.tree.map(lambda *x: np.concatenate(x), *halves)
    losses = functools.partial(MODEL.apply, method='losses')
    expected = jax.jit(losses)({'params': params()}, *inputs)
    mesh = make_mesh(devices=jax.devices()[:4])
    whole, rows = (
        NamedSharding(mesh, x) for x in (PartitionSpec(), PartitionSpec(mesh.axis_names))
    )
    arguments = jax.device_put({'params': params()}, whole), *jax.device_put(inputs, rows)
    compiled = jax.jit(on_mesh(losses, mesh)).lower(*arguments).compile()
    assert 'all-gather' not in compiled.as_text()
    for name, loss in compiled(*arguments).items():
        assert float(loss) == pytest.approx(float(expected[name]), rel=1e-5)


@functools.cache
def detect():
    return jax.jit(lambda params, *x: MODEL.apply({'params': params}, *x, method='detect'))


def second_stage(image, size):
    """Proposals, and the head's numbers for them."""

    def run(module, images, size):
        maps = module.maps(images)
        proposals = propose(*module.proposals(maps), module.anchors(SIZE), size, OPTIONS, False)
        cells = module._cut(maps, proposals.boxes, OPTIONS.box_size)
        return proposals, *module.box_head(cells)

    return jax.jit(lambda *x: MODEL.apply({'params': params()}, *x, method=run))(image, size)


def detected_by_hand(proposals, logits, deltas, size, threshold):
    """Rows of class, score and box, as detectron2's fast_rcnn_inference_single_image has them."""
    exponentials = np.exp(np.asarray(logits, np.float64))
    scores = exponentials / exponentials.sum(axis=-1, keepdims=True)
    rows = []
    for k in range(CLASSES):
        boxes = np.asarray(decode(deltas[:, k], proposals.boxes, OPTIONS.box_weights))
        boxes = np.clip(boxes, 0, [size[1], size[0], size[1], size[0]]).astype('f')
        kept = []
        for i in np.argsort(-scores[:, k], kind='stable'):
            if not proposals.valid[i] or scores[i, k] <= threshold:
                continue
            if not any(float(iou(boxes[i][None], boxes[j][None])[0, 0]) > 0.5 for j in kept):
                kept.append(i)
        rows += [(scores[i, k], k, boxes[i]) for i in kept]
    return sorted(rows, key=lambda row: -row[0])[: OPTIONS.detections]


def test_detections_are_those_of_a_loop_over_classes_and_boxes():
    """Inside the picture, whatever is padded; one compilation."""
    for seed in range(2):
        _, truth, _ = batch(seed, (0, 0))
        size = truth.size
        found = detect()(params(), images(seed), size)
        proposals, logits, deltas = second_stage(images(seed), size)
        for i in range(2):
            of_image = jax.tree.map(lambda x, i=i: np.asarray(x[i]), proposals)
            rows = detected_by_hand(of_image, logits[i], deltas[i], size[i], 0.05)
            count = len(rows)
            assert count > 3
            np.testing.assert_array_equal(found.classes[i, :count], [row[1] for row in rows])
            np.testing.assert_allclose(found.scores[i, :count], [r[0] for r in rows], rtol=1e-4)
            np.testing.assert_allclose(found.boxes[i, :count], [r[2] for r in rows], atol=1e-3)
            assert (found.classes[i, count:] == -1).all()
            assert not found.boxes[i, count:].any()
            assert not found.masks[i, count:].any()
            assert ((found.masks[i, :count] > 0) & (found.masks[i, :count] < 1)).all()
    assert detect()._cache_size() == 1
    assert found.masks.shape == (2, OPTIONS.detections, 8, 8)


def test_layer_decay_leaves_what_is_not_the_encoder_at_the_full_rate():
    scales = traverse_util.flatten_dict(layer_scales(params(), 0.7, depth=2), sep='/')
    for name, scale in scales.items():
        if not name.startswith('encoder/'):
            assert scale == 1
    expected = {'pos_embed': 3, 'patch_embed/kernel': 3}
    expected |= {f'blocks/block_{i}/attention/rel_pos_h': 2 - i for i in range(2)}
    for name, power in expected.items():
        assert scales[f'encoder/{name}'] == pytest.approx(0.7**power)


def products(jaxpr) -> int:
    """Multiplications and additions of dense products and convolutions."""
    count = 0
    for equation in jaxpr.eqns:
        shapes = [x.aval.shape for x in equation.invars[:2]]
        out = int(np.prod(equation.outvars[0].aval.shape)) if equation.outvars else 0
        if equation.primitive.name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            count += 2 * out * int(np.prod([shapes[0][axis] for axis in contracted]))
        if equation.primitive.name == 'conv_general_dilated':
            count += 2 * out * int(np.prod(shapes[1][:-1]))
        rounds = equation.params['length'] if equation.primitive.name == 'scan' else 1
        # Of the branches for several platforms one is computed: layer norm multiplies on TPUs only.
        combine = min if equation.primitive.name == 'cond' else sum
        inner = [products(jaxpr) for jaxpr in jaxprs_in_params(equation.params)]
        count += rounds * combine(inner) if inner else 0
    return count


def test_operations_are_those_of_the_traced_products():
    """After the encoder, but for the targets of masks, which are not for planning."""
    inputs = batch(0, (4, 2))
    losses = jax.make_jaxpr(lambda p, *x: total(p, *x)[0])(params(), *inputs)
    tokens = jax.make_jaxpr(
        lambda p, x: MODEL.encoder.apply({'params': p['encoder']}, x, final_norm=False)
    )(params(), inputs[0])
    masks = 2 * 2 * 4 * 8 * 10 * (10 + 8)
    counted = products(losses.jaxpr) - products(tokens.jaxpr) - masks
    assert MODEL.flops(SIZE) == counted / 2


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        (dict(anchor_sizes=(8.0, 16.0)), r'model.anchor_sizes=\(8.0, 16.0\) must be 5 sizes'),
        (dict(anchor_ratios=()), 'model.anchor_ratios'),
        (dict(detections=0), 'model.detections=0 must be at least 1'),
        (dict(detection_nms=1.5), 'model.detection_nms=1.5 must be from 0 to 1'),
        (dict(anchor_thresholds=(0.7, 0.3)), 'the lower one first'),
        (dict(roi_samples=3), 'model.roi_samples=3 times model.roi_positives=0.25'),
        (dict(box_weights=(1.0, 1.0, 0.0, 1.0)), 'model.box_weights'),
    ],
)
def test_numbers_that_do_not_work_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        DetectorOptions(**fields).check()


def test_a_bfloat16_detector_computes_nearly_the_losses_of_float32():
    """Where proposals differ by rounding, others are drawn: only the losses of anchors compare."""
    narrow = MODEL.clone(encoder=MODEL.encoder.clone(dtype=jnp.bfloat16))
    inputs = batch(0, (4, 2))
    losses = [
        jax.jit(functools.partial(model.apply, method='losses'))({'params': params()}, *inputs)
        for model in (MODEL, narrow)
    ]
    assert all(x.dtype == jnp.float32 for x in losses[1].values())
    for name in ('objectness', 'proposal_box'):
        assert float(losses[1][name]) == pytest.approx(float(losses[0][name]), rel=0.05)
        assert float(losses[1][name]) != float(losses[0][name])
