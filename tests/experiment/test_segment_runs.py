"""Segmentation runs as a whole: what they write, and what becomes of it."""

import csv
import json
import shutil

import numpy as np
import pytest
from helpers.shared_runs import first_devices
from helpers.tiny_runs import SIZES, evaluations, flat, metrics
from PIL import Image

import mae_jax
from configs import segment
from mae_jax.cli.main import main
from mae_jax.errors import UserError
from mae_jax.experiment.run import run
from mae_jax.inference.segment import segmented
from mae_jax.inference.visualize import visualize

CLASSES = {'sky': (0, 100, 250), 'ground': (90, 60, 30), 'never': (9, 9, 9)}
FIELDS = SIZES | {
    'batch_size': 4,
    'num_steps': 40,
    'log_every_steps': 10,
    'eval_every_steps': 20,
    'image_every_steps': 20,
    'checkpoint_every_steps': 20,
    'model.dtype': 'float32',
    'dataset.name': 'paired_folders',
    'dataset.threads': 2,
    'dataset.short_side': 10,
    'dataset.augment': '',
    'dataset.resize_ratio': (1.0, 1.5),
    'optimizer.base_lr': 2.0,
    'optimizer.warmup_epochs': 0.0,
}


def make_scenes(root, train: int = 8, held_out: int = 3):
    """Light sky over dark ground, of several sizes; the border between them has no class."""
    rng = np.random.default_rng(0)
    root.mkdir()
    lines = [f'{name} {" ".join(map(str, colour))}\n' for name, colour in CLASSES.items()]
    (root / 'classes.txt').write_text(''.join(lines))
    for split, count in (('train', train), ('val', held_out)):
        folders = [root / kind / split for kind in ('images', 'annotations')]
        for folder in folders:
            folder.mkdir(parents=True)
        for number in range(count):
            height, width = 12 + number % 3, 16 - number % 2
            horizon = height // 2
            image = np.where(np.arange(height) < horizon, 200, 60)[:, None]
            image = image + rng.integers(0, 40, (height, width))
            mask = np.zeros((height, width), np.uint8)
            mask[horizon:] = 1
            mask[horizon] = 255
            for folder, pixels in zip(folders, (image, mask), strict=True):
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{number}.png')
    return root


def config_of(data, **fields):
    config = segment.get_config('linear')
    config.update_from_flattened_dict(FIELDS | {'dataset.path': str(data)} | fields)
    return config


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """40 steps of a linear head on a frozen untrained encoder: (data, work directory, state)."""
    folder = tmp_path_factory.mktemp('segment')
    data = make_scenes(folder / 'scenes')
    with first_devices(1):
        state = run(config_of(data), str(folder / 'run'))
    return data, folder / 'run', state


def test_it_learns_and_its_metrics_are_logged(trained):
    _, workdir, _ = trained
    first, last = evaluations(workdir)[4], evaluations(workdir)[40]
    assert last['eval/miou'] > max(0.9, first['eval/miou'])
    assert last['eval/pixel_accuracy'] > 0.9
    assert last['eval/loss'] < first['eval/loss']


def test_the_iou_of_every_class_that_occurs_is_written(trained):
    _, workdir, _ = trained
    header, *rows = csv.reader((workdir / 'per_class.csv').read_text().splitlines())
    assert header == ['class', 'pixels', 'iou']
    assert {row[0] for row in rows} == {'sky', 'ground'}
    pixels = {name: int(count) for name, count, _ in rows}
    sizes = [(12, 16), (13, 15), (14, 16)]
    assert pixels['sky'] == sum(h // 2 * w for h, w in sizes)
    assert pixels['ground'] == sum((h - h // 2 - 1) * w for h, w in sizes)
    ious = [float(iou) for *_, iou in rows]
    assert ious == sorted(ious)
    assert np.mean(ious) == pytest.approx(evaluations(workdir)[40]['eval/miou'], abs=1e-4)


def test_names_and_colours_of_the_classes_lie_in_the_work_directory(trained):
    _, workdir, _ = trained
    assert json.loads((workdir / 'class_names.json').read_text()) == list(CLASSES)
    assert json.loads((workdir / 'class_colours.json').read_text()) == [
        *map(list, CLASSES.values())
    ]
    card = (workdir / 'model_card.md').read_text()
    texts = 'pipeline_tag: image-segmentation', 'held-out mIoU', 'mae_jax.segment(path'
    for text in (*texts, 'a linear head, trained', 'of warm-up, then linear to 0 |'):
        assert text in card


def test_pixels_of_a_file_get_their_classes_at_its_own_size(trained):
    data, workdir, _ = trained
    files = [data / f'images/val/{number}.png' for number in (0, 1)]
    masks = mae_jax.segment(workdir, files)
    assert [mask.shape for mask in masks] == [(12, 16), (13, 15)]
    for file, predicted in zip(files, masks, strict=True):
        mask = np.asarray(Image.open(data / 'annotations/val' / file.name))
        assert (predicted == mask)[mask != 255].mean() > 0.9


def test_a_picture_shows_image_truth_and_prediction(trained, tmp_path):
    """The truth where the mask lies beside; without it two columns."""
    data, workdir, _ = trained
    elsewhere = tmp_path / '0.png'
    elsewhere.write_bytes((data / 'images/val/0.png').read_bytes())
    widths = []
    for image in (data / 'images/val/0.png', elsewhere):
        out = tmp_path / f'{len(widths)}_out.png'
        arguments = ['visualize', str(workdir), str(image), '--show', 'segmentation']
        assert main([*arguments, '--out', str(out)]) == 0
        picture = np.asarray(Image.open(out))
        widths.append(picture.shape[1])
        for colour in list(CLASSES.values())[:2]:
            assert (picture == colour).all(axis=-1).any()
    assert widths[0] == widths[1] * 3 // 2
    assert main([*arguments, '--out', str(tmp_path / 'x.png'), '--block', '0']) == 1
    with pytest.raises(UserError, match='has no decoder: add --show=segmentation'):
        visualize(workdir, [elsewhere], tmp_path / 'x.png')
    assert (workdir / 'images/latest.png').exists()


@pytest.mark.parametrize('suffix', ['.png', '.bmp'])
def test_the_truth_of_a_picture_fits_its_image(trained, tmp_path, suffix):
    data, workdir, _ = trained
    for folder in ('images', 'masks'):
        (tmp_path / folder).mkdir()
    shutil.copy(data / 'images/val/0.png', tmp_path / 'images/0.png')
    mask = tmp_path / f'masks/0{suffix}'
    Image.new('L', (16, 12)).save(mask)
    assert list(segmented(workdir, [tmp_path / 'images/0.png'])) == ['image', 'truth', 'prediction']
    Image.new('L', (9, 9)).save(mask)
    with pytest.raises(UserError, match=rf'0\{suffix} has 9 x 9 pixels where its image'):
        segmented(workdir, [tmp_path / 'images/0.png'])


def test_masks_without_any_class_end_the_run(trained, tmp_path):
    data, workdir, _ = trained
    shutil.copytree(data, tmp_path / 'scenes')
    for file in (tmp_path / 'scenes/annotations/val').iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(file)), 255)).save(file)
    with pytest.raises(UserError, match='no pixel of the held-out masks has a class'):
        run(
            config_of(tmp_path / 'scenes', mode='eval', init_from=str(workdir)), str(tmp_path / 'r')
        )


def test_evaluation_again_gives_the_same(trained, capsys):
    data, workdir, _ = trained
    with first_devices(2):
        run(config_of(data, mode='eval'), str(workdir))
    last = evaluations(workdir)[40]
    assert f'{last["eval/miou"]:.4f} mIoU' in capsys.readouterr().out


def test_an_encoder_of_it_serves_other_runs(trained):
    _, workdir, state = trained
    encoder, params = mae_jax.load_encoder(workdir)
    np.testing.assert_array_equal(
        params['patch_embed']['kernel'], state.params['encoder']['patch_embed']['kernel']
    )


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(trained, tmp_path):
    data, _, expected = trained
    with first_devices(1):
        half = config_of(data, num_steps=40)
        half.checkpoint_every_steps = 20
        run(half, str(tmp_path / 'run'))
        shutil.rmtree(tmp_path / 'run/checkpoints/40')
        again = run(half, str(tmp_path / 'run'))
    for name, value in flat(expected.params).items():
        np.testing.assert_array_equal(flat(again.params)[name], value, err_msg=name)
    np.testing.assert_array_equal(
        again.model_state['batch_stats']['head']['norm']['var'],
        expected.model_state['batch_stats']['head']['norm']['var'],
    )


@pytest.mark.slow
def test_upernet_starts_from_a_pretrained_encoder(pretrained, trained, tmp_path):
    data, *_ = trained
    config = segment.get_config('upernet')
    fields = {name: value for name, value in FIELDS.items() if name not in SIZES}
    config.update_from_flattened_dict(fields | {'dataset.path': str(data)})
    config.update_from_flattened_dict({
        'init_from': str(pretrained[0]),
        'num_steps': 3,
        'model.head_width': 8,
        'model.auxiliary_width': 8,
        'model.relative_positions': 'beit',
        'model.layer_scale': 1.0,
        'optimizer.base_lr': 0.01,
    })  # fmt: skip
    with first_devices(2):
        state = run(config, str(tmp_path / 'run'))
    attention = state.params['encoder']['blocks']['block_0']['attention']
    assert np.abs(attention['relative_table']).max() > 0
    lines = metrics(tmp_path / 'run')
    assert any('auxiliary_loss' in line for line in lines)


def test_a_checkpoint_without_the_blocks_that_are_tapped_is_refused(pretrained, trained, tmp_path):
    data, *_ = trained
    config = config_of(data, **{'model.taps': (3, 5, 7, 11), 'init_from': str(pretrained[0])})
    with pytest.raises(UserError, match=r'model.taps=.*has no block 3'):
        run(config, str(tmp_path / 'run'))


def test_a_run_that_does_not_segment_is_no_segmenter(pretrained):
    with pytest.raises(UserError, match='does not segment images'):
        mae_jax.segment(pretrained[0], ['a.png'])


def test_data_without_masks_are_refused(trained, tmp_path):
    data, *_ = trained
    with pytest.raises(UserError, match="has no mask: give dataset.name='paired_folders'"):
        run(config_of(data, **{'dataset.name': 'digits'}), str(tmp_path / 'run'))
