"""No step scatters: neither forward nor backward, whatever is learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import detectors
from helpers.models import make_mae
from helpers.slow import slow_after

from configs import finetune_digits
from mae_jax.data.sources.arrays import ArraySource
from mae_jax.models.segmentation.segmenter import Segmenter
from mae_jax.models.segmentation.upernet import FCNHead, UperHead
from mae_jax.models.vit import Encoder
from mae_jax.pretext.tokenizers import Tokenizer
from mae_jax.tasks import make_task
from mae_jax.tasks.pretrain import Pretrain
from mae_jax.tasks.segment import Segment
from mae_jax.training import sharding
from mae_jax.training.optimizer import make_optimizer
from mae_jax.training.state import abstract_state, jit_step, make_step

SIZE, ROWS = (16, 16), 8
MODEL = dict(
    patch_size=4, width=16, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
)


def pretraining(**fields):
    """A pretraining task; tokens are all the same."""
    zeros = Tokenizer(300, lambda _, images: jnp.zeros((len(images), 16), int), {}, dict)
    tokenizer = zeros if fields.get('target') == 'token' else None
    model = make_mae(**MODEL | fields)
    return Pretrain(model, SIZE, mean=(0.5,), std=(0.25,), tokenizer=tokenizer)


def classification(**fields):
    """Fine-tuning with all of its augmentation."""
    config = finetune_digits.get_config()
    config.update_from_flattened_dict(
        {'mix.mixup': 0.8, 'mix.cutmix': 1.0, 'dataset.erase': 0.25, 'model.drop_path': 0.1}
        | fields
    )
    names = [str(digit) for digit in range(10)]
    return make_task(config, ArraySource(np.zeros((1, 8, 8, 1)), np.zeros(1), names))


def segmentation(trained):
    """UperNet with its auxiliary head."""
    encoder = Encoder(4, 16, 2, 2, frozen_blocks=2 if trained == 'head' else 0)
    heads = UperHead(5, 8), FCNHead(5, 8)
    model = Segmenter(encoder, *heads, (0, 0, 1, 1), drop_path=0.1)
    fields = dict(mean=(0.5,), std=(0.25,), colours=(), trained=trained)
    return Segment(model, 5, SIZE, SIZE, **fields)


def text_of_step(task, size, accumulate=1, loaded=None):
    """The whole step, as it is given to the compiler; `loaded` are arrays of its batch."""
    optimizer = make_optimizer(
        'adamw', lambda _: 1e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.05
    )
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    state = abstract_state(task, optimizer, mesh)
    batch = {
        'image': jax.ShapeDtypeStruct((ROWS, *size, 1), jnp.uint8),
        'label': jax.ShapeDtypeStruct((ROWS,), jnp.int32),
        'mask': jax.ShapeDtypeStruct((ROWS, *size), jnp.uint8),
    } | (loaded or {})
    step = make_step(task, optimizer, seed=0, accumulate=accumulate)
    return jit_step(step, mesh, state).lower(state, batch).as_text()


CASES = {
    'pixels': pretraining,
    'tokens': lambda: pretraining(target='token', target_fields={'codes': 300}),
    'scanned': lambda: pretraining(scan=True, remat='dots'),
    'bfloat16': lambda: pretraining(dtype=jnp.bfloat16),
    'pca': lambda: pretraining(target='pca', target_fields={'components': 3}),
    'block-wise masks': lambda: pretraining(strategy='block', mask_ratio=0.5),
    'mask tokens in the encoder': lambda: pretraining(encoder_mask_tokens=True),
}


@pytest.mark.parametrize('case', slow_after(2, CASES))
def test_a_step_of_pretraining_does_not_scatter(case):
    text = text_of_step(CASES[case](), SIZE, accumulate=2 if case == 'pixels' else 1)
    assert 'stablehlo.dot_general' in text
    assert 'scatter' not in text


@pytest.mark.parametrize('trained', slow_after(1, ['all', '1', 'head']))
def test_a_step_of_classification_does_not_scatter(trained):
    assert 'scatter' not in text_of_step(classification(trained=trained), (8, 8))


BEIT = {'relative_positions': 'beit', 'key_bias': False, 'layer_scale': 0.1}
VITDET = {'relative_positions': 'vitdet', 'cls_token': False, 'window': 3, 'global_blocks': (1,)}


@pytest.mark.parametrize('options', [BEIT, VITDET], ids=['beit', 'vitdet'])
def test_a_step_with_relative_positions_does_not_scatter(options):
    task = classification(**{f'model.{name}': x for name, x in options.items()})
    assert task.model.options.changed() == options
    assert 'scatter' not in text_of_step(task, (8, 8))


@pytest.mark.parametrize('trained', slow_after(1, ['all', 'head']))
def test_a_step_of_segmentation_does_not_scatter(trained):
    text = text_of_step(segmentation(trained), SIZE)
    assert 'stablehlo.convolution' in text
    assert 'scatter' not in text


@pytest.mark.parametrize('trained', slow_after(1, ['all', 'head']))
def test_a_step_of_detection_does_not_scatter(trained):
    """Neither do anchors, proposals, RoIAlign and masks."""
    task = detectors.make_task(drop=0.1, trained=trained, frozen=2 if trained == 'head' else 0)
    text = text_of_step(task, (8, 8), loaded=detectors.training_batch(ROWS))
    assert 'stablehlo.convolution' in text
    assert 'scatter' not in text


def test_the_search_finds_a_scatter():
    """A gradient of JAX's own gather has one."""
    ids = jnp.zeros((2, 3), int)
    gradient = jax.grad(lambda x: jnp.take_along_axis(x, ids, axis=1).sum())
    assert 'scatter' in jax.jit(gradient).lower(jnp.zeros((2, 4))).as_text()
