"""`mae-jax visualize`, from the files named to the file written."""

import argparse
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.drawings import cells_of
from helpers.tiny_runs import classifying
from PIL import Image

import mae_jax
from configs import finetune
from mae_jax.cli import visualize
from mae_jax.config.model import make_classifier
from mae_jax.errors import UserError
from mae_jax.experiment.inherit import inherit
from mae_jax.interop.trained import Trained, read_trained, write_trained
from mae_jax.visualization.drawing import RAMP

SIDE, PATCH = 8, 2  # of the model that `pretrained` trains; one channel


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """Three PNGs, grey and in colour, upright and not: their paths."""
    folder, rng = tmp_path_factory.mktemp('photographs'), np.random.default_rng(0)
    paths = []
    for number, shape in enumerate([(20, 30), (8, 8, 3), (40, 25, 4)]):
        paths.append(folder / f'{number}.png')
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(paths[-1])
    return paths


@pytest.fixture(scope='module')
def workdir(pretrained):
    return pretrained[0]


@pytest.fixture(scope='module')
def classifier(workdir, tmp_path_factory):
    """A file that holds a classifier of ten classes, as it is before it is fine-tuned."""
    folder = tmp_path_factory.mktemp('classifier')
    config = inherit(classifying(finetune.paper, workdir), folder)
    images = np.zeros((1, SIDE, SIDE, 1), np.float32)
    init = jax.jit(make_classifier(config, 10).init)
    params = jax.tree.map(np.asarray, init(jax.random.key(0), images)['params'])
    write_trained(folder / 'classifier.safetensors', Trained(params, {}, 0, config))
    return folder / 'classifier.safetensors'


def draw(checkpoint, *arguments) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    visualize.add_arguments(parser)
    visualize.run(parser.parse_args([str(argument) for argument in (checkpoint, *arguments)]))


def drawn(out: Path, rows: int, columns: int) -> np.ndarray:
    """uint8 [columns, rows, 8, 8, 3] of a picture that was written."""
    image = Image.open(out)
    assert image.mode == 'RGB'
    return cells_of(np.asarray(image), rows, columns, SIDE, SIDE)


def as_the_model_saw_it(path: Path) -> np.ndarray:
    """uint8 [8, 8, 3]: grey, short side to 8, the middle of it; by Pillow."""
    image = Image.open(path).convert('L')
    size = [SIDE * side // min(image.size) for side in image.size]
    left, top = (round((side - SIDE) / 2) for side in size)
    resized = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + SIDE, top + SIDE)).convert('RGB'))


def grey_patches(cells: np.ndarray) -> np.ndarray:
    """bool [rows, 4, 4]: patches that are grey all over."""
    grid = cells.reshape(len(cells), SIDE // PATCH, PATCH, SIDE // PATCH, PATCH, 3)
    return (grid == 128).all(axis=(2, 4, 5))


def test_visible_patches_are_the_images_own_pixels(workdir, photographs, tmp_path, capsys):
    out = tmp_path / 'new' / 'folder' / 'grid.png'
    draw(workdir, *photographs, '--out', out)
    assert str(out) in capsys.readouterr().out
    original, masked, filled = drawn(out, 3, 3)
    np.testing.assert_array_equal(original, [as_the_model_saw_it(path) for path in photographs])
    hidden = grey_patches(masked)
    np.testing.assert_array_equal(hidden.sum(axis=(1, 2)), [8, 8, 8])  # half, as in its config
    assert (hidden[0] != hidden[1]).any()
    pixels = np.kron(hidden, np.ones((1, PATCH, PATCH), bool)).astype(bool)
    for shown in (masked, filled):
        np.testing.assert_array_equal(shown[~pixels], original[~pixels])
    assert (filled[pixels] != original[pixels]).mean() > 0.5
    draw(workdir, *photographs, '--raw', '--out', out, '--overwrite')
    *others, raw = drawn(out, 3, 4)
    np.testing.assert_array_equal(others, [original, masked, filled])
    np.testing.assert_array_equal(raw[pixels], filled[pixels])
    assert (raw != original).mean() > 0.5


def test_the_seed_decides_the_masks_and_a_ratio_how_much_they_hide(workdir, photographs, tmp_path):
    pictures = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / f'{number}.png'
        draw(workdir, *photographs, '--seed', seed, '--mask_ratio', 0.75, '--out', out)
        pictures.append(drawn(out, 3, 3))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    hidden, others = grey_patches(pictures[0][1]), grey_patches(pictures[2][1])
    np.testing.assert_array_equal(hidden.sum(axis=(1, 2)), [12, 12, 12])
    assert (hidden != others).any(axis=(1, 2)).all()


def test_several_ratios_stand_side_by_side_and_are_nested(workdir, photographs, tmp_path):
    out = tmp_path / 'ratios.png'
    draw(workdir, *photographs, '--mask_ratio', 0.25, 0.5, 0.9, '--out', out)
    _, few, _, half, _, most, _ = drawn(out, 3, 7)
    few, half, most = (grey_patches(masked) for masked in (few, half, most))
    assert [int(mask[0].sum()) for mask in (few, half, most)] == [4, 8, 15]
    assert (half | ~few).all() and (most | ~half).all()


def test_images_can_stand_abreast(workdir, photographs, tmp_path):
    draw(workdir, *photographs, '--out', tmp_path / 'below.png')
    draw(workdir, *photographs, '--abreast', 3, '--out', tmp_path / 'abreast.png')
    below = drawn(tmp_path / 'below.png', 3, 3)
    abreast = drawn(tmp_path / 'abreast.png', 1, 9)
    np.testing.assert_array_equal(abreast.reshape(3, 3, *below.shape[2:]), below.swapaxes(0, 1))


@pytest.fixture
def mask(tmp_path):
    """Paints over one pixel of the first photograph, of 30 x 20: row 1, column 1 of the patches."""
    pixels = np.zeros((20, 30), np.uint8)
    pixels[7, 12] = 255
    Image.fromarray(pixels).save(tmp_path / 'mask.png')
    return tmp_path / 'mask.png'


def test_what_is_painted_over_is_hidden_and_filled(workdir, photographs, mask, tmp_path):
    out = tmp_path / 'filled.png'
    draw(workdir, photographs[0], photographs[0], '--mask', mask, '--out', out)
    original, masked, filled = drawn(out, 2, 3)
    expected = np.zeros((2, 4, 4), bool)
    expected[:, 1, 1] = True
    np.testing.assert_array_equal(grey_patches(masked), expected)
    pixels = np.kron(expected, np.ones((1, PATCH, PATCH), bool)).astype(bool)
    np.testing.assert_array_equal(filled[~pixels], original[~pixels])
    images = mae_jax.load_images(workdir, [photographs[0]])
    result = mae_jax.reconstruct(*mae_jax.load(workdir), images, expected[:1].reshape(1, 16))
    shown = np.clip(np.rint((result.reconstruction * 0.376 + 0.305) * 255), 0, 255)
    np.testing.assert_array_equal(filled[0], shown[0].repeat(3, axis=-1))
    draw(workdir, photographs[0], '--mask', mask, '--raw', '--out', tmp_path / 'raw.png')
    assert len(drawn(tmp_path / 'raw.png', 1, 4)) == 4


def test_complementary_masks_give_a_full_reconstruction_and_its_errors(
    workdir, photographs, tmp_path
):
    out = tmp_path / 'errors.png'
    draw(workdir, *photographs, '--masks', 4, '--seed', 1, '--out', out)
    original, filled, error = drawn(out, 3, 3)
    images = mae_jax.load_images(workdir, photographs)
    result = mae_jax.reconstruct(*mae_jax.load(workdir), images, masks=4, seed=1)
    shown = np.clip(np.rint((result.reconstruction * 0.376 + 0.305) * 255), 0, 255)
    np.testing.assert_array_equal(filled, shown.repeat(3, axis=-1))
    shares = np.sqrt(result.error) / np.sqrt(result.error.max())
    stops = np.linspace(0, 1, 5)
    bands = [np.interp(shares, stops, band) for band in np.transpose(RAMP)]
    assert np.abs(error - np.stack(bands, axis=-1)).max() <= 0.51
    assert (error[np.unravel_index(result.error.argmax(), shares.shape)] == RAMP[-1]).all()


def test_a_mask_of_another_size_than_its_image_is_named(workdir, photographs, mask, tmp_path):
    out = tmp_path / 'filled.png'
    with pytest.raises(UserError, match=r'mask\.png has 30 x 20 .*1\.png has 8 x 8'):
        draw(workdir, *photographs[:2], '--mask', mask, '--out', out)
    assert not out.exists()
    with pytest.raises(UserError, match='one of the images'):
        draw(workdir, photographs[0], '--mask', mask, '--out', mask, '--overwrite')


@pytest.mark.parametrize('show, columns', [('attention', 6), ('pca', 3)])
def test_an_encoder_is_all_that_attention_and_components_need(
    show, columns, workdir, classifier, photographs, tmp_path
):
    for number, checkpoint in enumerate((workdir, classifier)):
        out = tmp_path / f'{number}.png'
        draw(checkpoint, *photographs, '--show', show, '--block', 0, '--out', out)
        original, *maps = drawn(out, 3, columns)
        expected = [as_the_model_saw_it(path) for path in photographs]
        np.testing.assert_array_equal(original, expected)
        assert all((shown[0] != shown[1]).any() for shown in maps)


def test_one_file_draws_what_its_run_does(workdir, photographs, tmp_path):
    write_trained(tmp_path / 'model.safetensors', read_trained(workdir))
    draw(workdir, *photographs, '--out', tmp_path / 'a.png')
    draw(tmp_path / 'model.safetensors', *photographs, '--out', tmp_path / 'b.png')
    assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()


def test_without_a_decoder_there_is_no_reconstruction(workdir, classifier, photographs, tmp_path):
    trained = read_trained(workdir)
    encoder = trained._replace(params={'encoder': trained.params['encoder']})
    write_trained(tmp_path / 'encoder.safetensors', encoder)
    out = tmp_path / 'grid.png'
    for checkpoint in (tmp_path / 'encoder.safetensors', classifier):
        with pytest.raises(UserError, match='no decoder'):
            draw(checkpoint, *photographs, '--out', out)
    assert not out.exists()
    draw(tmp_path / 'encoder.safetensors', *photographs, '--show', 'pca', '--out', out)
    assert out.exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['{photo}', '--out={existing}'], 'exists and is kept.*--overwrite'),
        (['{photo}', '--out={folder}'], 'is a directory'),
        (['{photo}', '--out={folder}/grid.tga'], 'must end in .png'),
        (['{photo}', '--out={folder}/grid'], 'must end in .png'),
        (['{photo}', '--out={existing}/grid.png'], 'cannot be written'),
        (['{folder}/missing.png', '--out={out}'], 'missing.png cannot be read'),
        (['{photo}', '{text}', '--out={out}'], 'text.jpg cannot be read as an image'),
        (['{photo}', '--mask_ratio=0', '--out={out}'], 'mask.ratio=0.0 hides none'),
        (['{photo}', '--mask_ratio', '.5', '1', '--out={out}'], r'mask.ratio=1.0 is not in'),
        (['{photo}', '--strategy=none', '--out={out}'], "mask.strategy='none' is unknown"),
        (['{photo}', '--abreast=0', '--out={out}'], '--abreast=0 must be at least 1'),
        (['{photo}', '--show=pca', '--block=2', '--out={out}'], 'block'),
        (['{photo}', '--show=attention', '--block=2', '--out={out}'], 'block'),
    ],
)
def test_a_mistake_is_reported_and_nothing_is_written(
    arguments, message, workdir, photographs, tmp_path
):
    names = {
        'photo': photographs[0],
        'folder': tmp_path,
        'out': tmp_path / 'grid.png',
        'text': tmp_path / 'text.jpg',
        'existing': tmp_path / 'existing.png',
    }
    names['text'].write_text('no picture')
    names['existing'].write_bytes(b'kept')
    with pytest.raises(UserError, match=message):
        draw(workdir, *(argument.format(**names) for argument in arguments))
    assert names['existing'].read_bytes() == b'kept'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['existing.png', 'text.jpg']


def test_overwriting_is_done_when_asked_for(workdir, photographs, tmp_path):
    out = tmp_path / 'grid.jpg'
    out.write_bytes(b'old')
    draw(workdir, photographs[0], '--out', out, '--overwrite')
    assert Image.open(out).format == 'JPEG'


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--show', 'pca', '--seed', 1), '--seed has no effect with --show=pca'),
        (('--show', 'attention', '--mask_ratio', 0.5), '--mask_ratio has no effect'),
        (('--show', 'pca', '--raw'), '--raw has no effect with --show=pca'),
        (('--block', 0), '--block has no effect with --show=reconstruction'),
        (('--seed', 2**70), '--seed'),
        (('--show', 'pca', '--mask', 'm.png'), '--mask has no effect with --show=pca'),
        (('--mask', 'm.png', '--seed', 1), '--seed has no effect with --mask'),
        (('--mask', 'm.png', '--masks', 2), '--masks has no effect with --mask:'),
        (('--masks', 2, '--mask_ratio', 0.5), '--mask_ratio has no effect with --masks'),
        (('--masks', 2, '--raw'), '--raw has no effect with --masks'),
        (('--masks', 17), 'masks=17 must be from 2 to 16'),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    workdir, photographs, tmp_path, arguments, message
):
    with pytest.raises(UserError, match=message):
        draw(workdir, *photographs, '--out', tmp_path / 'x.png', *arguments)


def test_a_picture_never_replaces_an_image_it_is_of(workdir, photographs):
    before = photographs[0].read_bytes()
    with pytest.raises(UserError, match='one of the images'):
        draw(workdir, photographs[0], '--out', photographs[0], '--overwrite')
    assert photographs[0].read_bytes() == before
