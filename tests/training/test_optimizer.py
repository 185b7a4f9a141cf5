"""Schedules, decay rules and optimisers against NumPy by hand, and against PyTorch."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optimizers
import pytest
from flax import traverse_util
from helpers.commands import ROOT

from mae_jax.errors import UserError
from mae_jax.models.options import EncoderOptions
from mae_jax.models.vit import Encoder
from mae_jax.training.optimizer import (
    decays,
    decays_finetune,
    layer_scales,
    make_optimizer,
    make_schedule,
    merge_params,
    split_params,
)

GOLDEN = ROOT / 'tests/golden' / 'optimizers.npz'
ADAMW = dict(b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05)


def original_rate(step, steps_per_epoch, peak, minimum, warmup_epochs, epochs):
    """The original's rule, in fractions of an epoch."""
    epoch = step / steps_per_epoch
    if epoch < warmup_epochs:
        return peak * epoch / warmup_epochs
    done = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * done))


@pytest.mark.parametrize('minimum', [0.0, 1e-6])
def test_learning_rate_is_the_originals_at_every_step(minimum):
    schedule = make_schedule(peak=2.4e-3, total_steps=700, warmup_steps=35, minimum=minimum)
    expected = [original_rate(s, 7, 2.4e-3, minimum, 5, 100) for s in range(700)]
    np.testing.assert_allclose([schedule(s) for s in range(700)], expected, atol=2e-9)


def test_a_linear_schedule_falls_in_a_straight_line_after_the_warm_up():
    schedule = make_schedule(
        peak=1e-4, total_steps=160_000, warmup_steps=1500, minimum=1e-6, shape='linear'
    )
    steps = [0, 750, 1500, 1500 + 158_500 // 4, 80_750, 160_000]
    left = np.array([1, 0.75, 0.5, 0])
    expected = [0, 5e-5, *(1e-6 + (1e-4 - 1e-6) * left)]
    np.testing.assert_allclose([schedule(s) for s in steps], expected, rtol=1e-5)
    with pytest.raises(UserError, match=r"optimizer\.schedule='stairs' is unknown"):
        make_schedule(peak=1.0, total_steps=2, shape='stairs')


@pytest.mark.parametrize(
    'peak, minimum, warmup_epochs, epochs, steps_per_epoch',
    [
        pytest.param(2e-3, 1e-6, 5, 100, 1251, id='fine-tune base'),
        pytest.param(4e-3, 1e-6, 5, 50, 1251, id='fine-tune large'),
        pytest.param(6.4, 0.0, 10, 90, 78, id='linear probe base'),
        pytest.param(1.6e-3, 0.0, 20, 300, 312, id='from scratch base'),
    ],
)
def test_recipes_have_the_originals_rate_at_every_step(
    peak, minimum, warmup_epochs, epochs, steps_per_epoch
):
    steps = np.arange(epochs * steps_per_epoch)
    schedule = make_schedule(
        peak=peak,
        total_steps=len(steps),
        warmup_steps=warmup_epochs * steps_per_epoch,
        minimum=minimum,
    )
    expected = [
        original_rate(s, steps_per_epoch, peak, minimum, warmup_epochs, epochs) for s in steps
    ]
    np.testing.assert_allclose(schedule(steps), expected, rtol=1e-6, atol=1e-6 * peak)


def test_first_update_of_a_warm_up_is_zero_and_no_warm_up_starts_at_the_peak():
    assert make_schedule(peak=1.0, total_steps=10, warmup_steps=2)(0) == 0
    assert make_schedule(peak=1.0, total_steps=10)(0) == 1
    assert make_schedule(peak=1.0, total_steps=10)(10) == pytest.approx(0, abs=1e-7)


def test_decay_spares_biases_and_norms_only():
    params = {
        'cls_token': jnp.ones((1, 1, 4)),
        'norm': {'scale': jnp.ones(4), 'bias': jnp.ones(4)},
        'fc1': {'kernel': jnp.ones((4, 4)), 'bias': jnp.ones(4)},
    }
    assert decays(params) == {
        'cls_token': True,
        'norm': {'scale': False, 'bias': False},
        'fc1': {'kernel': True, 'bias': False},
    }


def update_by(tx: optax.GradientTransformation):
    """Returns the function (gradients, state, parameters) -> (parameters, state)."""

    def update(grads, state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return update


def test_adamw_decays_by_the_learning_rate_and_spares_vectors():
    """Thirty steps against Loshchilov and Hutter's Algorithm 2 in NumPy."""
    rng = np.random.default_rng(0)
    params = {'kernel': rng.normal(size=(3, 2)), 'bias': rng.normal(size=2)}
    schedule = make_schedule(peak=0.1, total_steps=30, warmup_steps=5)
    tx = make_optimizer('adamw', schedule, **ADAMW)
    ours = jax.tree.map(np.float32, params)
    state, update = tx.init(ours), jax.jit(update_by(tx))
    moments = {name: (0.0, 0.0) for name in params}
    for step in range(30):
        grads = {name: rng.normal(size=p.shape) for name, p in params.items()}
        ours, state = update(jax.tree.map(np.float32, grads), state, ours)
        rate = original_rate(step, 1, 0.1, 0.0, 5, 30)
        for name, grad in grads.items():
            first, second = moments[name]
            first, second = 0.9 * first + 0.1 * grad, 0.95 * second + 0.05 * grad**2
            moments[name] = first, second
            first, second = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.95 ** (step + 1))
            decay = 0.05 * params[name] if name == 'kernel' else 0
            params[name] = params[name] - rate * (first / (np.sqrt(second) + 1e-8) + decay)
    for name in params:
        np.testing.assert_allclose(ours[name], params[name], atol=1e-5)


def test_clipping_bounds_the_global_norm_and_is_off_by_default():
    params = {'a': np.zeros(2, np.float32), 'b': np.zeros(2, np.float32)}
    grads = {'a': np.full(2, 30, np.float32), 'b': np.full(2, 40, np.float32)}

    def first_moment(**options):
        """Adam's first update does not depend on the gradient's size, its moments do."""
        tx = make_optimizer('adamw', lambda _: 1.0, **options, **ADAMW)
        state = jax.jit(lambda: tx.update(grads, tx.init(params), params)[1])()
        return optax.tree_utils.tree_get(state, 'mu')['a'][0]

    assert first_moment() == pytest.approx(3.0)
    assert first_moment(clip_norm=1.0) == pytest.approx(3.0 / np.sqrt(5000))


ORIGINAL = EncoderOptions()


@functools.cache
def classifier(pool: str, depth: int, options: EncoderOptions = ORIGINAL) -> dict:
    """The tree of a classifier's parameters, as shapes."""
    encoder = Encoder(patch_size=2, width=4, depth=depth, heads=1, options=options)
    init = functools.partial(encoder.init, final_norm=pool == 'cls')
    images = jax.ShapeDtypeStruct((1, 4, 4, 3), jnp.float32)
    vector, matrix = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((4,), (4, 4)))
    params = {
        'encoder': jax.eval_shape(init, jax.random.key(0), images)['params'],
        'head': {'kernel': matrix, 'bias': vector},
    }
    norm = {'fc_norm': {'scale': vector, 'bias': vector}}
    return params | norm if pool == 'mean' else params


BLOCK = """
    norm1/scale           spared
    norm1/bias            spared
    attention/qkv/kernel  decays
    attention/qkv/bias    spared
    attention/proj/kernel decays
    attention/proj/bias   spared
    norm2/scale           spared
    norm2/bias            spared
    mlp/fc1/kernel        decays
    mlp/fc1/bias          spared
    mlp/fc2/kernel        decays
    mlp/fc2/bias          spared
"""
OUTSIDE = """
    encoder/cls_token           0   spared
    encoder/pos_embed           0   spared
    encoder/patch_embed/kernel  0   decays
    encoder/patch_embed/bias    0   spared
    head/kernel                 13  decays
    head/bias                   13  spared
"""
NORM = {
    'mean': """
    fc_norm/scale               13  spared
    fc_norm/bias                13  spared
""",
    'cls': """
    encoder/norm/scale          13  spared
    encoder/norm/bias           13  spared
""",
}
# The exponents fall from 13 at the embeddings to 0 at the head.
SCALES = {
    0.65: [
        0.003697205, 0.005688009, 0.008750783, 0.013462743, 0.020711913, 0.031864481, 0.049022279,
        0.075418891, 0.116029063, 0.178506250, 0.274625000, 0.422500000, 0.650000000, 1.0,
    ],
    0.75: [
        0.023757264, 0.031676352, 0.042235136, 0.056313515, 0.075084686, 0.100112915, 0.133483887,
        0.177978516, 0.237304688, 0.316406250, 0.421875000, 0.562500000, 0.750000000, 1.0,
    ],
}  # fmt: skip


@pytest.mark.parametrize('decay', SCALES)
@pytest.mark.parametrize('pool', NORM)
def test_every_parameter_of_a_twelve_block_classifier_has_the_originals_scale_and_decay(
    pool, decay
):
    table = [line.split() for line in (OUTSIDE + NORM[pool]).splitlines() if line]
    for k in range(12):
        for line in BLOCK.strip().splitlines():
            name, flag = line.split()
            table.append([f'encoder/blocks/block_{k}/{name}', k + 1, flag])
    params = classifier(pool, depth=12)
    scales = traverse_util.flatten_dict(layer_scales(params, decay, depth=12), sep='/')
    flags = traverse_util.flatten_dict(decays_finetune(params), sep='/')
    assert len(table) == 6 + 2 + 12 * 12
    assert scales.keys() == flags.keys() == {name for name, _, _ in table}
    for name, layer, flag in table:
        assert scales[name] == pytest.approx(SCALES[decay][int(layer)], abs=1e-9), name
        assert flags[name] == (flag == 'decays'), name


OPTIONS = {
    EncoderOptions(relative_positions='beit', layer_scale=0.1): """
    attention/relative_table    decays
    attention_scale             spared
    mlp_scale                   spared
""",
    EncoderOptions(relative_positions='vitdet', cls_token=False, window=2): """
    attention/rel_pos_h         decays
    attention/rel_pos_w         decays
""",
}


@pytest.mark.parametrize('options', OPTIONS)
def test_what_options_add_belongs_to_its_block_and_tables_decay(options):
    """As in the recipes of BEiT, UperNet over MAE and ViTDet, which spare `pos_embed` alone."""
    params, default = classifier('mean', 12, options), classifier('mean', 12)
    scales = traverse_util.flatten_dict(layer_scales(params, 0.65, depth=12), sep='/')
    flags = traverse_util.flatten_dict(decays_finetune(params), sep='/')
    table = {
        f'encoder/blocks/block_{k}/{name}': (SCALES[0.65][k + 1], flag == 'decays')
        for name, flag in map(str.split, OPTIONS[options].strip().splitlines())
        for k in range(12)
    }
    added = scales.keys() - traverse_util.flatten_dict(default, sep='/').keys()
    assert added == table.keys()
    for name, (scale, flag) in table.items():
        assert scales[name] == pytest.approx(scale, abs=1e-9), name
        assert flags[name] == flag, name


def test_scales_do_not_depend_on_which_blocks_are_trained():
    params = classifier('mean', depth=12)
    trained, _ = split_params(params, lambda path: 'block_11/' in path or path[:4] != 'enco')
    scales = layer_scales(trained, 0.75, depth=12)
    assert scales['encoder']['blocks']['block_11']['mlp']['fc1']['bias'] == 0.75
    assert scales['head'] == {'kernel': 1.0, 'bias': 1.0}
    assert jax.tree.structure(scales) == jax.tree.structure(trained)


def follow(tx: optax.GradientTransformation, shapes: dict, case: str) -> None:
    """Thirty steps of `tx`, each compared with the golden one."""
    params = traverse_util.unflatten_dict(optimizers.start(shapes), sep='/')
    state, update = jax.jit(tx.init)(params), jax.jit(update_by(tx))
    with np.load(GOLDEN) as golden:
        history = {name: golden[f'{case}/{name}'] for name in shapes}
    for step in range(optimizers.STEPS):
        grads = traverse_util.unflatten_dict(optimizers.gradients(shapes, step), sep='/')
        params, state = update(grads, state, params)
        for name, ours in traverse_util.flatten_dict(params, sep='/').items():
            label = f'{name} after step {step}'
            np.testing.assert_allclose(ours, history[name][step], atol=1e-5, rtol=0, err_msg=label)


def golden_schedule(peak: float, minimum: float = 0.0) -> optax.Schedule:
    warmup_steps = optimizers.WARMUP_EPOCHS * optimizers.STEPS_PER_EPOCH
    return make_schedule(
        peak=peak, total_steps=optimizers.STEPS, warmup_steps=warmup_steps, minimum=minimum
    )


def test_adamw_with_layer_decay_follows_pytorch():
    tx = make_optimizer(
        'adamw',
        golden_schedule(optimizers.ADAMW_LR, optimizers.ADAMW_MIN_LR),
        decay_mask=decays_finetune,
        scales=functools.partial(
            layer_scales, decay=optimizers.LAYER_DECAY, depth=optimizers.DEPTH
        ),
        **optimizers.ADAMW,
    )
    follow(tx, optimizers.CLASSIFIER, 'adamw')


@pytest.mark.parametrize('case', optimizers.LARS)
def test_lars_follows_its_definition(case):
    tx = make_optimizer(
        'lars',
        golden_schedule(optimizers.LARS_LR),
        momentum=optimizers.MOMENTUM,
        trust_coefficient=optimizers.TRUST,
        **ADAMW | {'weight_decay': optimizers.LARS[case]},
    )
    follow(tx, optimizers.PROBE, case)


def test_unknown_optimizer_is_named():
    with pytest.raises(UserError, match='sgdx'):
        make_optimizer('sgdx', lambda _: 1.0, **ADAMW)


def test_frozen_parameters_are_split_off_by_name_and_merged_back():
    params = {'encoder': {'pos_embed': 1, 'norm': {'scale': 2}}, 'decoder': {'pos_embed': 3}}
    trained, frozen = split_params(params, lambda path: not path.endswith('pos_embed'))
    assert trained == {'encoder': {'norm': {'scale': 2}}}
    assert frozen == {'encoder': {'pos_embed': 1}, 'decoder': {'pos_embed': 3}}
    assert merge_params(trained, frozen) == params
