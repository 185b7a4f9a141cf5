"""Detection runs as a whole: what they write, resume and load, on drawn scenes."""

import csv
import json
import shutil

import numpy as np
import pytest
from helpers.detectors import FIELDS
from helpers.scenes import draw_scenes
from helpers.shared_runs import first_devices
from helpers.tiny_runs import flat, metrics
from PIL import Image
from pycocotools.coco import COCO

import mae_jax
from configs import detect
from mae_jax.cli.main import main
from mae_jax.errors import UserError
from mae_jax.experiment.run import run


def config_of(data, **fields):
    config = detect.get_config()
    config.update_from_flattened_dict(FIELDS | {'dataset.path': str(data)} | fields)
    return config


def evaluations(workdir) -> dict[int, dict[str, float]]:
    """Returns step -> metrics on the held-out images."""
    return {line['step']: line for line in metrics(workdir) if 'eval/box_ap' in line}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """16 scenes of 64 pixels to train on, and 9 held out, one of them without an object."""
    root = tmp_path_factory.mktemp('scenes')
    draw_scenes(root, 16, 64, 0, empty_every=8)
    draw_scenes(root, 9, 64, 1, split='val2017', empty_every=4)
    return root


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    """Six steps on one device: (work directory, state)."""
    workdir = tmp_path_factory.mktemp('detect') / 'run'
    with first_devices(1):
        state = run(config_of(data), str(workdir))
    return workdir, state


def test_data_without_boxes_are_refused(data, tmp_path):
    fields = {'dataset.name': 'folder', 'dataset.path': str(data / 'train2017')}
    with pytest.raises(UserError, match=r'(categories|classes).*coco'):
        run(config_of(data, **fields), str(tmp_path / 'run'))


def test_a_run_that_does_not_detect_is_no_detector(pretrained):
    with pytest.raises(UserError, match='does not detect objects'):
        mae_jax.detect(pretrained[0], ['a.png'])


@pytest.mark.slow
def test_losses_and_precision_are_logged(trained):
    workdir, _ = trained
    losses = [line for line in metrics(workdir) if 'loss' in line]
    names = ('objectness', 'proposal_box', 'class', 'box', 'mask')
    for line in losses:
        total = sum(line[f'{name}_loss'] for name in names)
        assert line['loss'] == pytest.approx(total, rel=1e-5)
    assert losses[-1]['loss'] < losses[0]['loss']
    assert evaluations(workdir).keys() == {3, 6}
    for values in evaluations(workdir).values():
        assert 0 <= values['eval/box_ap'] <= values['eval/box_ap50'] <= 1
        assert 'eval/mask_ap_small' in values


@pytest.mark.slow
def test_the_result_file_is_one_of_coco(trained, data, capsys):
    workdir, _ = trained
    truth = COCO(str(data / 'annotations/instances_val2017.json'))
    results = truth.loadRes(str(workdir / 'detections.json'))
    assert set(results.getImgIds()) <= set(truth.getImgIds())
    header, *rows = csv.reader((workdir / 'per_class.csv').read_text().splitlines())
    assert header == ['class', 'objects', 'box_ap', 'mask_ap']
    counts = {name: int(count) for name, count, *_ in rows}
    for category in truth.dataset['categories']:
        expected = truth.getAnnIds(catIds=[category['id']], iscrowd=False)
        assert counts.get(category['name'], 0) == len(expected)


@pytest.mark.slow
def test_names_pictures_and_card_lie_in_the_work_directory(trained):
    workdir, _ = trained
    assert json.loads((workdir / 'class_names.json').read_text()) == ['disc', 'square', 'triangle']
    assert (workdir / 'images/latest.png').exists()
    card = (workdir / 'model_card.md').read_text()
    for text in ('pipeline_tag: object-detection', 'held-out box AP', 'mae_jax.detect(path'):
        assert text in card
    assert 'then constant, a tenth from 88.9% and 96.3% of the run on' in card


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_as_one_that_was_not(trained, data, tmp_path):
    _, expected = trained
    with first_devices(1):
        run(config_of(data), str(tmp_path / 'run'))
        shutil.rmtree(tmp_path / 'run/checkpoints/6')
        again = run(config_of(data), str(tmp_path / 'run'))
    for name, value in flat(expected.params).items():
        np.testing.assert_array_equal(flat(again.params)[name], value, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize('fsdp', [1, 8])
def test_eight_devices_train_and_evaluate_as_one(fsdp, trained, data, tmp_path):
    workdir, expected = trained
    with first_devices(8):
        state = run(config_of(data, **{'mesh.fsdp': fsdp}), str(tmp_path / 'run'))
    for name, value in flat(expected.params).items():
        np.testing.assert_allclose(flat(state.params)[name], value, atol=1e-5, err_msg=name)
    ours, other = (evaluations(path)[6] for path in (tmp_path / 'run', workdir))
    assert ours['eval/box_ap'] == pytest.approx(other['eval/box_ap'], abs=1e-4)


@pytest.mark.slow
def test_evaluation_again_gives_the_same(trained, data, capsys):
    workdir, _ = trained
    before = json.loads((workdir / 'detections.json').read_text())
    with first_devices(1):
        run(config_of(data, mode='eval'), str(workdir))
    assert f'{evaluations(workdir)[6]["eval/box_ap"]:.4f} box AP' in capsys.readouterr().out
    after = json.loads((workdir / 'detections.json').read_text())
    assert len(after) == len(before) > 0
    assert after[0]['bbox'] == pytest.approx(before[0]['bbox'], abs=1e-3)


@pytest.mark.slow
def test_objects_in_files_are_those_of_the_evaluation(trained, data, tmp_path):
    """At the size of the file; a converted detector finds the same."""
    workdir, _ = trained
    files = sorted((data / 'val2017').glob('*.png'))[:2]
    records = json.loads((workdir / 'detections.json').read_text())
    one = tmp_path / 'detector.safetensors'
    assert main(['convert', str(workdir), str(one)]) == 0
    for path in (workdir, one):
        for file, each in zip(files, mae_jax.detect(path, files), strict=True):
            own = [record for record in records if record['image_id'] == 10 + int(file.stem)]
            assert len(each.scores) == len(own)
            np.testing.assert_allclose(each.scores, [r['score'] for r in own], atol=1e-4)
            boxes = np.array([r['bbox'] for r in own]).reshape(-1, 4)
            boxes[:, 2:] += boxes[:, :2]
            np.testing.assert_allclose(each.boxes, boxes, atol=1e-2)
            height, width = np.asarray(Image.open(file)).shape[:2]
            assert each.masks.shape == (len(own), height, width)
            assert set(each.names) <= {'disc', 'square', 'triangle'}
    out = tmp_path / 'out.png'
    arguments = ['visualize', str(workdir), *map(str, files), '--show', 'detection']
    assert main([*arguments, '--out', str(out)]) == 0
    assert np.asarray(Image.open(out)).shape[1] > 640
    assert main([*arguments, '--out', str(tmp_path / 'x.png'), '--block', '0']) == 1


@pytest.mark.slow
def test_an_encoder_of_it_serves_other_runs(trained):
    workdir, state = trained
    encoder, params = mae_jax.load_encoder(workdir)
    assert encoder.options.relative_positions == 'vitdet'
    np.testing.assert_array_equal(
        params['patch_embed']['kernel'], state.params['encoder']['patch_embed']['kernel']
    )


@pytest.mark.slow
def test_it_starts_from_a_pretrained_encoder(data, tmp_path):
    """Positions are resized, that of the cls token is left out, and only the last block learns."""
    from configs import folder

    config = folder.get_config('laptop')
    sizes = {name: value for name, value in FIELDS.items() if name.startswith('dataset.s')}
    config.update_from_flattened_dict(
        sizes
        | {name: FIELDS[f'model.{name[6:]}'] for name in ('model.width', 'model.depth')}
        | {
            'model.heads': 2,
            'image_size': (32, 32),
            'batch_size': 8,
            'num_steps': 2,
            'max_images_seen': None,
            'eval_every_steps': 0,
            'image_every_steps': 0,
            'dataset.mean': FIELDS['dataset.mean'],
            'dataset.path': str(data / 'train2017'),
        }
    )
    with first_devices(1):
        before = run(config, str(tmp_path / 'pretrained'))
        fields = {'init_from': str(tmp_path / 'pretrained'), 'trained': '1', 'num_steps': 2}
        after = run(config_of(data, **fields, eval_every_steps=0), str(tmp_path / 'run'))
    blocks = [state.params['encoder']['blocks'] for state in (before, after)]
    for block, learns in (('block_0', False), ('block_1', True)):
        kernels = [np.asarray(each[block]['mlp']['fc1']['kernel']) for each in blocks]
        assert (kernels[0] != kernels[1]).any() == learns
    assert after.params['encoder']['pos_embed'].shape == (1, 64, 16)
