"""`probe_block`: features after any block of an encoder, against the encoder cut by hand."""

import json

import jax
import numpy as np
import pytest
from helpers.tiny_runs import PLAIN, classifying, flat, start
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

import mae_jax
from configs import finetune, knn, linprobe, partial
from mae_jax.config.saved import to_json
from mae_jax.errors import UserError
from mae_jax.experiment.inherit import inherit
from mae_jax.experiment.run import run
from mae_jax.interop.load import load
from mae_jax.models.norm import LayerNorm
from mae_jax.models.transformer import Block


def after_block(path, images, count):
    """Tokens after the first `count` blocks and the final norm, each module applied by itself."""
    encoder, params = mae_jax.load_encoder(path)
    positions, patch = params['pos_embed'], params['patch_embed']
    cells = images.reshape(len(images), 4, 2, 4, 2).swapaxes(2, 3).reshape(len(images), 16, 4)
    tokens = cells @ np.asarray(patch['kernel']) + patch['bias'] + positions[:, 1:]
    cls = np.broadcast_to(params['cls_token'] + positions[:, :1], (len(images), 1, 16))
    tokens = np.concatenate([cls, tokens], axis=1)
    for index in range(count):
        block = Block(heads=encoder.heads)
        tokens = block.apply({'params': params['blocks'][f'block_{index}']}, tokens)
    return np.asarray(LayerNorm(epsilon=1e-6).apply({'params': params['norm']}, tokens))


@pytest.fixture(scope='module')
def digits():
    """Normalised images [1797, 8, 8] and labels: 1,437 of training, then the held-out ones."""
    data, order = load_digits(), np.random.default_rng(0).permutation(1797)
    pixels = np.rint(data.images[order] * (255 / 16)) / 255
    return ((pixels - 0.305) / 0.376).astype(np.float32), data.target[order]


@pytest.mark.parametrize('pool', ['mean', 'cls'])
def test_neighbours_are_those_of_the_features_after_the_block(pretrained, digits, tmp_path, pool):
    config = knn.get_config()
    fields = {'init_from': str(pretrained[0]), 'probe_block': 0, 'knn.pool': pool}
    fields |= {'knn.shots': (), 'knn.linear': 'ridge', 'model.dtype': 'float32'}
    config.update_from_flattened_dict(fields | {'dataset.eval_crop_share': 1.0})
    actual = run(config, tmp_path)
    images, labels = digits
    tokens = after_block(pretrained[0], images, 1)
    rows = tokens[:, 1:].mean(axis=1) if pool == 'mean' else tokens[:, 0]
    train, test = np.arange(len(rows)) < 1437, np.arange(len(rows)) >= 1437
    expected = KNeighborsClassifier(20, metric='cosine', weights='distance')
    expected = expected.fit(rows[train], labels[train]).score(rows[test], labels[test])
    assert actual['knn'] == pytest.approx(expected, abs=2 / 360)
    (line,) = (tmp_path / 'results.jsonl').read_text().splitlines()
    assert json.loads(line)['probe_block'] == 0


@pytest.mark.parametrize('recipe', [linprobe.get_config, partial.get_config, finetune.get_config])
def test_a_classifier_ends_after_the_block(pretrained, tmp_path, recipe):
    config = classifying(recipe, pretrained[0], PLAIN | {'probe_block': 0})
    actual, expected = flat(start(config, tmp_path).params), flat(pretrained[1].params)
    blocks = {name.split('/')[2] for name in actual if name.startswith('encoder/blocks/')}
    assert blocks == {'block_0'}
    shared = [name for name in actual if name.startswith('encoder/')]
    for name in shared:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
    assert ('encoder/norm/scale' in shared) == (config.model.pool == 'cls')


def test_the_last_block_is_the_whole_encoder(pretrained, tmp_path):
    whole = classifying(linprobe.get_config, pretrained[0], PLAIN)
    assert whole.probe_block == -1
    states = []
    for block in (-1, 1):
        whole.probe_block = block
        states.append(start(whole, tmp_path / str(block)))
    assert jax.tree.all(jax.tree.map(np.array_equal, states[0].params, states[1].params))


@pytest.fixture(scope='module')
def probed(pretrained, run_once):
    """A linear probe on cached features after the first of two blocks, six steps."""
    fields = PLAIN | {'probe_block': 0, 'cache_features': True}
    return run_once('probed_block', classifying(linprobe.get_config, pretrained[0], fields))


def test_a_probe_trains_on_the_features_after_the_block_and_loads(pretrained, probed, digits):
    model, params = load(probed[0])
    assert model.depth == 1
    logits = model.apply({'params': params}, digits[0][:64, ..., None])
    cls = after_block(pretrained[0], digits[0][:64], 1)[:, 0]
    expected = cls @ np.asarray(params['head']['kernel']) + params['head']['bias']
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_a_probe_is_resumed_and_belongs_to_its_block(probed, capsys):
    workdir, state, config = probed
    resumed = inherit(config, workdir)
    assert (resumed.model.depth, resumed.probe_block) == (1, 0)
    assert to_json(inherit(resumed, workdir)) == to_json(resumed)
    assert int(run(config, workdir).step) == int(state.step)  # it has ended
    other = config.copy_and_resolve_references()
    for block in (1, -1):
        other.probe_block = block
        with pytest.raises(UserError, match=f'probe_block was 0, now {block}'):
            run(other, workdir)


def test_a_named_variant_ends_after_the_block_too(pretrained, tmp_path):
    config = classifying(linprobe.get_config, pretrained[0], PLAIN | {'probe_block': 4})
    config.model.variant = 'vit_base'
    first = inherit(config, tmp_path)
    assert first.model.depth == 5
    assert inherit(first, tmp_path).model.depth == 5


@pytest.mark.parametrize('block', [2, -2])
@pytest.mark.parametrize('recipe', [knn, finetune])
def test_a_block_that_does_not_exist_is_refused(pretrained, tmp_path, recipe, block):
    config = recipe.get_config()
    config.init_from, config.probe_block = str(pretrained[0]), block
    with pytest.raises(UserError, match=rf'probe_block={block} does not exist: .* 0 to 1, and -1'):
        inherit(config, tmp_path)
