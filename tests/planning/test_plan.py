"""Plans agree with what one counts by hand from the papers of ViT and of MAE."""

from typing import NamedTuple

import jax
import pytest
from ml_collections import ConfigDict

from configs import detect_coco_base, finetune, segment_ade20k_base, vit_base, vit_huge
from mae_jax.config.length import make_learning_rate, make_length
from mae_jax.errors import UserError
from mae_jax.planning.plan import Data, estimate_speed, find_change, find_data, fits, make_plan
from mae_jax.runtime.chips import Chip, named_chip
from mae_jax.tasks import make_task
from mae_jax.training.sharding import make_mesh
from mae_jax.training.state import abstract_state, jit_step, make_step

GIB = 2**30
DATA = Data(examples=1_281_167, num_classes=1000)
SMALL = {
    'model.width': 128,
    'model.depth': 2,
    'model.heads': 4,
    'model.decoder_width': 64,
    'model.decoder_depth': 1,
    'model.decoder_heads': 4,
    'model.dtype': 'float32',
    'batch_size': 64,
}


class ByHand(NamedTuple):
    trained: int
    fixed: int
    flops_per_image: float


def count_by_hand(width, depth, patch, decoder_width, decoder_depth, image=224) -> ByHand:
    """An MAE that hides 3 of 4 patches; 2 operations a multiplication, backward twice forward."""
    patches, pixels = (image // patch) ** 2, 3 * patch**2
    seen = patches // 4

    def block_weights(d):  # qkv, projection, two layers of 4d, their biases; two LayerNorms
        return (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + 4 * d

    def block_flops(d, tokens):  # the four products with weights, and the two of attention
        return 2 * tokens * (3 + 1 + 4 + 4) * d * d + 2 * 2 * tokens * tokens * d

    encoder = pixels * width + width + width + depth * block_weights(width) + 2 * width
    decoder = width * decoder_width + decoder_width + decoder_width
    decoder += decoder_depth * block_weights(decoder_width) + 2 * decoder_width
    decoder += decoder_width * pixels + pixels
    flops = 2 * seen * pixels * width + depth * block_flops(width, seen + 1)
    flops += 2 * (seen + 1) * width * decoder_width
    flops += decoder_depth * block_flops(decoder_width, patches + 1)
    flops += 2 * patches * decoder_width * pixels
    fixed = (patches + 1) * (width + decoder_width)
    return ByHand(encoder + decoder, fixed, 3 * flops)


def small(**changes) -> ConfigDict:
    config = vit_base.get_config()
    config.update_from_flattened_dict(SMALL | changes)
    return config


def huge(**changes) -> ConfigDict:
    config = vit_huge.get_config()
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope='module')
def plain():
    return make_plan(small(), 8, DATA)


def test_a_small_model_is_what_one_counts_by_hand(plain):
    hand = count_by_hand(width=128, depth=2, patch=16, decoder_width=64, decoder_depth=1)
    assert plain.trained == hand.trained
    assert sum(plain.parameters.values()) == hand.trained + hand.fixed
    assert plain.product_flops == pytest.approx(64 * hand.flops_per_image, rel=1e-6)
    assert plain.xla_flops == pytest.approx(64 * hand.flops_per_image, rel=0.02)
    memory = plain.memory
    assert memory.parameters == 4 * (hand.trained + hand.fixed)
    assert memory.gradients == 4 * hand.trained
    # Two moments, each device an eighth of all but small ones.
    assert hand.trained < memory.optimizer_state < 1.15 * hand.trained
    assert memory.batch == pytest.approx(8 * 224 * 224 * 3 * (1 + 4), rel=0.01)
    # All is float32, and every device has the whole.
    assert memory.weight_copies < 0.01 * memory.parameters
    assert memory.total == sum(memory)


def test_sharded_parameters_are_an_eighth_but_for_small_ones(plain):
    sharded = make_plan(small(**{'mesh.fsdp': 8}), 8, DATA).memory
    assert sharded.optimizer_state == pytest.approx(plain.memory.optimizer_state, rel=0.01)
    tables = 4 * 197 * (128 + 64)  # of positions, which are never split
    for name, kept in {'parameters': tables, 'gradients': 0}.items():
        whole, shard = (getattr(memory, name) - kept for memory in (plain.memory, sharded))
        assert whole / 8 < shard < 1.15 * whole / 8
    assert sharded.activations == plain.memory.activations
    # What a device gathers for its products it holds whole.
    # All but the kernel of the patches, through which no gradient passes, and tables.
    assert 0.75 * plain.memory.parameters < sharded.weight_copies < plain.memory.parameters


@pytest.mark.slow
def test_activations_go_with_the_rows_of_a_micro_batch(plain):
    halves = make_plan(small(**{'optimizer.accumulate': 2}), 8, DATA)
    assert (plain.rows, halves.rows) == (8, 4)
    assert halves.memory.activations == pytest.approx(plain.memory.activations / 2, rel=0.01)
    assert halves.memory.gradients == 2 * plain.memory.gradients  # and their sum
    assert halves.memory.batch == plain.memory.batch
    assert halves.xla_flops == plain.xla_flops


@pytest.mark.slow
def test_rematerialisation_keeps_less_and_computes_more():
    deep = {'model.decoder_depth': 4}
    none, dots, block = (
        make_plan(small(**deep, **{'model.remat': remat}), 8, DATA)
        for remat in ('none', 'dots', 'block')
    )
    kept = [plan.memory.activations for plan in (block, dots, none)]
    assert kept == sorted(set(kept)) and kept[0] < kept[2] / 2
    assert none.xla_flops < dots.xla_flops < block.xla_flops < 1.4 * none.xla_flops
    assert block.product_flops == none.product_flops


@pytest.mark.slow
def test_a_loop_over_blocks_costs_the_same_operations(plain):
    scanned = make_plan(small(**{'model.scan': True}), 8, DATA)
    assert scanned.xla_flops == plain.xla_flops
    assert scanned.memory.activations == pytest.approx(plain.memory.activations, rel=0.1)
    assert scanned.memory.weight_copies > 0.5 * plain.memory.parameters  # stacked


@pytest.mark.slow
def test_bfloat16_keeps_fewer_activations_and_no_copy_of_the_weights(plain):
    half = make_plan(small(**{'model.dtype': 'bfloat16'}), 8, DATA).memory
    assert half.parameters == plain.memory.parameters
    assert half.activations < 0.9 * plain.memory.activations
    assert half.weight_copies == plain.memory.weight_copies  # casts are computed again


@pytest.mark.slow
def test_what_does_not_learn_has_no_gradient_and_no_moments():
    config = finetune.imagenet('vit_base')
    config.update_from_flattened_dict({k: v for k, v in SMALL.items() if 'decoder' not in k})
    config.trained = 'head'
    plan = make_plan(config, 8, DATA)
    assert plan.trained == 128 * 1000 + 1000  # the head
    assert plan.memory.gradients == 4 * plan.trained
    config.ema_decay = 0.99
    averaged = make_plan(config, 8, DATA)
    added = averaged.memory.optimizer_state - plan.memory.optimizer_state
    assert added == 4 * (128 * 1000 / 8 + 1000)  # each device an eighth of the kernel


@pytest.mark.slow
def test_a_segmenter_is_planned_with_its_heads():
    config = segment_ade20k_base.get_config()
    fields = {k: v for k, v in SMALL.items() if 'decoder' not in k and k != 'batch_size'}
    fields |= {'image_size': (64, 64), 'model.taps': (0, 0, 1, 1), 'model.head_width': 32}
    config.update_from_flattened_dict(fields)
    plan = make_plan(config, 8, Data(20_210, 150))
    assert (plan.length.num_steps, plan.rows) == (160_000, 2)
    assert plan.parameters.keys() == {'encoder', 'head', 'auxiliary'}
    assert plan.memory.batch == 2 * (2 * 64 * 64 * (3 + 1) + 4) + 4 * 2 * (2 * 2 + 32 + 256)
    config.model.remat = 'block'
    assert make_plan(config, 8, Data(20_210, 150)).memory.activations < plan.memory.activations


@pytest.mark.slow
def test_a_detector_is_planned_with_its_boxes_and_masks():
    config = detect_coco_base.get_config()
    config.update_from_flattened_dict({
        'image_size': (64, 64),
        'model.width': 32,
        'model.depth': 2,
        'model.heads': 2,
        'model.window': 3,
        'model.global_blocks': (1,),
        'model.channels': 8,
        'model.roi_samples': 16,
        'model.remat': 'none',
        'dataset.max_boxes': 10,
    })  # fmt: skip
    plan = make_plan(config, 8, Data(118_287, 80))
    assert (plan.length.num_steps, plan.length.warmup_steps, plan.rows) == (184_375, 250, 8)
    assert plan.parameters.keys() == {'encoder', 'pyramid', 'proposals', 'box_head', 'mask_head'}
    arrays = 64 * 64 * 3 + 4 * 2 + 10 * (4 * 4 + 4 + 112 * 112)  # image, size, boxes ...
    anchors = 3 * (16**2 + 8**2 + 4**2 + 2**2 + 1)
    noise = anchors + (min(5 * 3 * 16**2, 1000) + 10) + 2 * 2  # ... and what is drawn
    assert plan.memory.batch == 8 * (2 * arrays + 4 + 4 * noise)
    config.model.remat = 'block'
    assert make_plan(config, 8, Data(118_287, 80)).memory.activations < plan.memory.activations


def test_speed_is_operations_by_the_share_of_the_peak_that_is_reached(plain):
    chip = Chip('x', (), flops=1e12, memory=1)
    speed = estimate_speed(plain, chip, mfu=0.5)
    assert speed.step_seconds == pytest.approx(plain.product_flops / (8 * 1e12 * 0.5))
    assert speed.images_per_second == pytest.approx(64 / speed.step_seconds)
    steps = 800 * 1_281_167 // 64
    assert speed.days == pytest.approx(steps * speed.step_seconds / 86400)


@pytest.mark.slow
def test_what_is_to_change_makes_it_fit(plain):
    def chip(gib):
        return Chip('x', (), flops=1e12, memory=gib)

    assert fits(plain, chip(1)) and not fits(plain, chip(0.001))
    assert find_change(plain, chip(0.001)) is None
    wide = make_plan(small(**{'batch_size': 1024}), 8, DATA)
    small_chip = chip(0.7 * wide.memory.total / GIB)
    fsdp, accumulate, needed = find_change(wide, small_chip)
    assert (fsdp, accumulate) == (1, 2) and needed < 0.9 * 0.7 * wide.memory.total
    changed = make_plan(small(**{'batch_size': 1024, 'optimizer.accumulate': 2}), 8, DATA)
    assert fits(changed, small_chip)
    assert changed.memory.total == pytest.approx(needed, rel=0.05)


def test_the_number_of_examples_is_given_or_read_or_imagenets(tmp_path):
    assert find_data(vit_base.get_config(), 7) == Data(7, 0)
    config = vit_base.get_config()
    config.dataset.name = 'digits'
    assert find_data(config) == Data(1437, 10)
    config.dataset.name, config.dataset.path = 'folder', str(tmp_path / 'none')
    data = find_data(config)
    assert data.examples == 1_281_167 and str(tmp_path / 'none') in data.problem


@pytest.mark.parametrize(
    ('changes', 'devices', 'message'),
    [
        ({'mesh.fsdp': 3}, 8, 'mesh.fsdp=3 does not divide the 8 devices'),
        ({'batch_size': 12}, 8, 'choose a multiple of 8'),
        ({'model.variant': 'vit_giant'}, 8, "'vit_giant' is unknown"),
        ({'model.remat': 'all'}, 8, "'all' is unknown"),
        ({}, 0, 'at least 1'),
        ({'task': 'knn'}, 8, 'nothing to plan'),
    ],
)
def test_a_mistake_is_one_sentence(changes, devices, message):
    with pytest.raises(UserError, match=message):
        make_plan(small(**changes), devices, DATA)


@pytest.fixture(scope='module')
def pod():
    return make_plan(huge(**{'mesh.fsdp': 8}), 256, DATA)


@pytest.mark.slow
def test_vit_huge_on_a_pod_is_what_one_counts_by_hand(pod):
    hand = count_by_hand(width=1280, depth=32, patch=14, decoder_width=512, decoder_depth=8)
    assert (hand.trained, hand.fixed) == (656_613_964, 460_544)  # 632 M encoder without classes
    close = {'rel': 0.02}
    assert sum(pod.parameters.values()) == pytest.approx(hand.trained + hand.fixed, **close)
    assert pod.memory.parameters == pytest.approx(4 * 657.1e6 / 8, **close)
    # Biases and norms, of 32 and of 8 blocks, are not split.
    whole = 32 * 9 * 1280 + 8 * 13 * 512
    assert pod.memory.optimizer_state == pytest.approx(8 * (656.6e6 / 256 + whole), **close)
    assert pod.memory.gradients == pytest.approx(4 * 656.6e6 / 8, **close)
    assert pod.memory.weight_copies == pytest.approx(2 * 656.6e6, **close)
    assert pod.product_flops == pytest.approx(4096 * hand.flops_per_image, **close)
    assert pod.xla_flops == pytest.approx(4096 * hand.flops_per_image, **close)
    assert pod.length.num_steps == 800 * 1_281_167 // 4096
    # 256 chips of 275 TFLOP/s, 40 % of them reached.
    seconds = 4096 * hand.flops_per_image / (256 * 275e12 * 0.4)
    speed = estimate_speed(pod, named_chip('v4'), 0.4)
    assert speed.step_seconds == pytest.approx(seconds, **close)
    assert speed.days == pytest.approx(250_228 * seconds / 86400, **close)
    assert fits(pod, named_chip('v4'))


@pytest.mark.slow
def test_vit_huge_on_eight_gpus_is_what_one_counts_by_hand():
    hand = count_by_hand(width=1280, depth=32, patch=14, decoder_width=512, decoder_depth=8)
    close = {'rel': 0.02}
    whole = make_plan(huge(**{'model.remat': 'block', 'optimizer.accumulate': 4}), 8, DATA)
    assert whole.memory.parameters == pytest.approx(4 * 657.1e6, **close)
    assert whole.memory.optimizer_state == pytest.approx(2 * 4 * 656.6e6 / 8, **close)
    assert whole.product_flops == pytest.approx(4096 * hand.flops_per_image, **close)
    speed = estimate_speed(whole, named_chip('h100'), 0.35)
    seconds = 4096 * hand.flops_per_image / (8 * 989e12 * 0.35)
    assert speed.days == pytest.approx(250_228 * seconds / 86400, **close)
    # The forward pass of the blocks again, without what only their output needs.
    again = 4096 * hand.flops_per_image / 3
    assert whole.product_flops + 0.6 * again < whole.xla_flops < whole.product_flops + again
    assert fits(whole, named_chip('h100'))


@pytest.mark.slow
@pytest.mark.parametrize('changes', [{}, {'mesh.fsdp': 8}, {'optimizer.accumulate': 2}])
def test_memory_is_about_what_xla_needs(changes):
    sizes = {'model.width': 384, 'model.depth': 4, 'batch_size': 64}
    config = small(**sizes, **changes)
    mesh = make_mesh(config.mesh.fsdp)
    task = make_task(config, None)
    length = make_length(config, DATA.examples)
    tx = task.make_optimizer(config.optimizer, make_learning_rate(config, length))
    state, accumulate = abstract_state(task, tx, mesh), config.optimizer.accumulate
    step = jit_step(make_step(task, tx, seed=0, accumulate=accumulate), mesh, state)
    batch = {
        'image': jax.ShapeDtypeStruct((64, 224, 224, 3), 'uint8'),
        'label': jax.ShapeDtypeStruct((64,), 'int32'),
    }
    options = {'xla_backend_optimization_level': 2}  # the tests' own is 0
    xla = step.lower(state, batch).compile(compiler_options=options).memory_analysis()
    held = xla.argument_size_in_bytes + xla.temp_size_in_bytes
    assert make_plan(config, 8, DATA).memory.total == pytest.approx(held, rel=0.4)
