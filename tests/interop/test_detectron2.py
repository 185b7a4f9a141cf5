"""ViTDet checkpoints of detectron2: each tensor reaches its place, in both directions."""

import pickle

import numpy as np
import pytest
from helpers import hostile_files
from helpers.vitdet_files import CLASSES, GRID, PATCH, WIDTH, WINDOW, Modules, tensors

import mae_jax
from mae_jax.cli.main import main
from mae_jax.errors import UserError
from mae_jax.interop.detectors import detector_of
from mae_jax.interop.read import read_model
from mae_jax.models.positions import resize_positions


@pytest.fixture
def file(tmp_path):
    """As the model zoo's: arrays by name, with the buffers of older releases."""
    buffers = {
        'pixel_mean': np.float32([123.675, 116.28, 103.53]).reshape(3, 1, 1),
        'pixel_std': np.float32([58.395, 57.12, 57.375]).reshape(3, 1, 1),
        'proposal_generator.anchor_generator.cell_anchors.0': np.zeros((3, 4), np.float32),
    }
    content = {'model': tensors() | buffers, '__author__': 'somebody', 'iteration': 3}
    (tmp_path / 'model_final.pkl').write_bytes(pickle.dumps(content, protocol=4))
    return tmp_path / 'model_final.pkl'


def test_sizes_windows_and_statistics_follow_from_the_file(file):
    config = read_model(file).config
    model = config.model
    assert (model.width, model.depth, model.heads, model.patch_size) == (WIDTH, 2, 2, PATCH)
    assert (model.window, model.global_blocks, model.cls_token) == (WINDOW, (1,), False)
    assert config.image_size == (GRID * PATCH,) * 2 and config.num_classes == CLASSES
    assert config.dataset.mean == (0.485, 0.456, 0.406)
    assert config.dataset.std == (0.229, 0.224, 0.225)


def test_every_module_computes_what_detectron2s_does(file):
    trained, theirs = read_model(file), Modules(tensors())
    model, rng = detector_of(trained).bind({'params': trained.params}), np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    features = draw(2, GRID, GRID, WIDTH)
    first = features.transpose(0, 3, 1, 2)
    maps, expected = model.pyramid(features), theirs.pyramid(first)
    assert len(maps) == len(expected) == 5
    for ours, other in zip(maps, expected, strict=True):
        np.testing.assert_allclose(ours.transpose(0, 3, 1, 2), other, atol=1e-4)
    logits, deltas = model.proposals(maps)
    for number, other in enumerate(expected):
        for ours, each in zip((logits, deltas), theirs.proposals(other), strict=True):
            np.testing.assert_allclose(ours[number], each, atol=1e-4)
    cells = draw(1, 6, 7, 7, 8)
    for ours, other in zip(
        model.box_head(cells), theirs.boxes(cells[0].transpose(0, 3, 1, 2)), strict=True
    ):
        np.testing.assert_allclose(ours[0], other, atol=1e-4)
    cells = draw(1, 6, 14, 14, 8)
    masks = theirs.masks(cells[0].transpose(0, 3, 1, 2))
    np.testing.assert_allclose(model.mask_head(cells)[0], masks.transpose(0, 2, 3, 1), atol=1e-4)


def test_positions_are_enlarged_to_the_images_without_that_of_the_cls_token(file):
    params = read_model(file).params['encoder']
    table = tensors()['backbone.net.pos_embed']
    expected = resize_positions(table[:, 1:], (4, 4), (GRID, GRID))
    np.testing.assert_array_equal(params['pos_embed'], expected)
    block = params['blocks']['block_1']['attention']
    np.testing.assert_array_equal(
        block['rel_pos_w'], tensors()['backbone.net.blocks.1.attn.rel_pos_w']
    )


def test_what_was_converted_comes_back_bit_for_bit(file, tmp_path, capsys):
    ours, theirs = tmp_path / 'detector.safetensors', tmp_path / 'again.pkl'
    assert main(['convert', str(file), str(ours)]) == 0
    assert f'detector of {CLASSES} classes' in capsys.readouterr().out
    assert main(['convert', str(ours), str(theirs)]) == 0
    again = pickle.loads(theirs.read_bytes())['model']
    assert again.pop('pixel_mean').ravel() == pytest.approx([123.675, 116.28, 103.53])
    assert again.pop('pixel_std').shape == (3, 1, 1)
    assert again.pop('backbone.net.pos_embed').shape == (1, GRID * GRID, WIDTH)
    expected = tensors()
    expected.pop('backbone.net.pos_embed')
    assert again.keys() == expected.keys()
    for name, array in expected.items():
        assert again[name].dtype == np.float32
        np.testing.assert_array_equal(again[name], array, err_msg=name)


def test_its_encoder_serves_other_models(file):
    encoder, params = mae_jax.load_encoder(file)
    images = np.random.default_rng(1).normal(size=(1, 32, 32, 3)).astype(np.float32)
    features = encoder.apply({'params': params}, images, method='features', output='map')
    assert features.shape == (1, GRID, GRID, WIDTH) and np.isfinite(features).all()
    assert encoder.options.window == WINDOW


def test_its_encoder_alone_is_a_file_of_its_own(file, tmp_path):
    alone = tmp_path / 'encoder.safetensors'
    assert main(['convert', str(file), str(alone), '--encoder_only']) == 0
    encoder, params = mae_jax.load_encoder(alone)
    _, expected = mae_jax.load_encoder(file)
    np.testing.assert_array_equal(params['pos_embed'], expected['pos_embed'])
    assert encoder.options.global_blocks == (1,)
    with pytest.raises(UserError, match='does not detect objects'):
        mae_jax.detect(alone, ['a.png'])


@pytest.mark.parametrize(
    'change, message',
    [
        (lambda x: x.pop('backbone.simfp_4.0.norm.bias'), 'simfp_4.0.norm.bias is missing'),
        (lambda x: x.update(extra=np.zeros(3, np.float32)), 'extra is unknown'),
        (lambda x: x.pop('roi_heads.box_predictor.cls_score.bias'), 'no Mask R-CNN of detectron2'),
        (lambda x: x.pop('backbone.net.blocks.1.attn.rel_pos_h'), 'it has no .*1.attn.rel_pos_h'),
        (
            lambda x: x.update({'backbone.simfp_3.1.norm.bias': np.zeros(5, np.float32)}),
            'pyramid/lateral_x2/norm/bias has shape',
        ),
        (lambda x: x.update({'backbone.net.pos_embed': np.zeros((1, 20, 16), np.float32)}), 'rows'),
    ],
)
def test_other_models_are_refused_in_a_sentence(change, message, tmp_path):
    named = tensors()
    change(named)
    path = tmp_path / 'model.pkl'
    path.write_bytes(pickle.dumps({'model': named}))
    with pytest.raises(UserError, match=message) as raised:
        read_model(path)
    assert str(path) in str(raised.value)


def test_nothing_in_the_file_is_run(tmp_path):
    path = tmp_path / 'model.pkl'
    path.write_bytes(pickle.dumps({'model': tensors(), 'x': hostile_files.Bomb(tmp_path)}))
    with pytest.raises(UserError, match='never done'):
        read_model(path)
    assert not (tmp_path / 'ran').exists()


def test_formats_of_other_models_have_no_place_for_a_detector(file, pretrained, tmp_path, capsys):
    assert main(['convert', str(file), str(tmp_path / 'x'), '--to', 'huggingface']) == 1
    assert "is a detector, for which 'huggingface' has no names" in capsys.readouterr().err
    assert main(['convert', str(pretrained[0]), str(tmp_path / 'x.pkl')]) == 1
    assert "'detectron2' has names for detectors" in capsys.readouterr().err
