"""Which classifiers, classes and images robustness takes, and a sentence for all others."""

import json
import re
import shutil

import numpy as np
import pytest
from helpers.robustness import SETS, write_classifier, write_images
from PIL import Image

import mae_jax
from configs import finetune, robustness
from mae_jax.cli.main import main
from mae_jax.data.sources.arrays import ArraySource
from mae_jax.errors import UserError
from mae_jax.evaluation.robustness import imagenet_wnids
from mae_jax.experiment.robustness_config import make_config, within
from mae_jax.experiment.run import run


def evaluate(workdir, model, data=None, **fields):
    options = {name: fields.pop(name, None) for name in ('kind', 'classes', 'images')}
    config = make_config(str(model), data=data and str(data), **options)
    config.update_from_flattened_dict({'batch_size': 24, 'model.dtype': 'float32'} | fields)
    return run(config, str(workdir))


def refuse(message, *arguments, **fields):
    with pytest.raises(UserError, match=message) as caught:
        evaluate(*arguments, **fields)
    assert '\n' not in str(caught.value)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('inputs')


@pytest.fixture(scope='module')
def of_three(folder):
    """A classifier of three classes by name."""
    return write_classifier(folder / 'three.safetensors', 3, ('ant', 'bee', 'cow'))


@pytest.fixture(scope='module')
def unnamed(folder):
    return write_classifier(folder / 'unnamed.safetensors', 3)


@pytest.fixture
def photos(tmp_path):
    return write_images(tmp_path / 'photos', ('ant', 'cow'), 3, side=32)


@pytest.fixture
def moved(monkeypatch):
    """Makes corruptions quick: severity s moves colours by s channels."""

    def corrupt(pixels, corruption, severity, key):
        return np.roll(pixels, severity, axis=2)

    monkeypatch.setattr('mae_jax.data.transforms.corruptions.corrupt', corrupt)
    monkeypatch.setattr('mae_jax.evaluation.robustness_sets.corruption_functions', lambda: None)
    monkeypatch.setattr('mae_jax.experiment.robustness.draw_plot', lambda report: None)


def test_pretraining_alone_is_refused(pretrained, photos, tmp_path):
    refuse('is no classifier: fine-tune it first', tmp_path / 'out', pretrained[0], photos)
    with pytest.raises(UserError, match=r'evaluates a classifier: give --config\.init_from'):
        config = robustness.get_config()
        config.dataset.update(name='folder', channels=3, scale=255.0, mean=(0.5,), std=(0.5,))
        run(config, str(tmp_path / 'out'))


def test_unknown_classes_are_named(of_three, tmp_path):
    data = write_images(tmp_path / 'a', imagenet_wnids()[1:201], 1)
    message = r'a has 200 classes that \S*three.safetensors does not have \(n01443537, .*ant, bee'
    refuse(message, tmp_path / 'out', of_three, data)
    fewer = write_images(tmp_path / 'fewer', ('ant', 'bee'), 1)
    message = 'images of 2 classes, and ImageNet-R of 200: extract it again, or give another --kind'
    refuse(message, tmp_path / 'out', of_three, fewer, kind='imagenet_r')


def test_classes_without_names_are_given_in_a_file(unnamed, photos, tmp_path):
    out = tmp_path / 'out'
    refuse(r'3 outputs, and it does not name its classes: give --cl', out, unnamed, photos)
    file = tmp_path / 'classes.txt'
    refuse(r'classes\.txt cannot be read', out, unnamed, photos, classes=str(file))
    file.write_text('ant\nbee\n')
    refuse(r'classes\.txt has 2 names', out, unnamed, photos, classes=str(file))
    file.write_text('ant\nbee\nbee\n')
    refuse(r'classes\.txt names bee twice', out, unnamed, photos, classes=str(file))
    refuse(r'imagenet has 1,000 names', out, unnamed, photos, classes='imagenet')


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'images': 0}, r'eval_examples=0 .* must be at least 1'),
        ({'model.dtype': 'float16'}, r"model\.dtype='float16'"),
        ({'kind': 'imagenet_b'}, r'robustness\.py:imagenet_b is unknown: choose imagenet_a'),
        ({'batch_size': 0}, r'batch_size=0'),
    ],
)
def test_a_field_that_cannot_work_is_named(of_three, photos, tmp_path, fields, message):
    refuse(message, tmp_path / 'out', of_three, photos, **fields)


@pytest.mark.slow
def test_a_runs_directory_is_enough_for_its_held_out_images(fine_tuned, tmp_path, capsys):
    pytest.importorskip('imagecorruptions')
    workdir = shutil.copytree(fine_tuned[0], tmp_path / 'run')
    assert main(('robustness', str(workdir), '--images', '12', '--config.batch_size=24')) == 0
    out = workdir / 'robustness/corruptions'
    assert {'table.md', 'plot.png', 'results.json'} <= {path.name for path in out.iterdir()}
    sets = json.loads((out / 'results.json').read_text())['sets']
    assert list(sets) == ['clean', *SETS] and {s['images'] for s in sets.values()} == {12}
    table = (out / 'table.md').read_text()
    assert table in capsys.readouterr().out and re.search(r'\| fog \|( [\d.]+ \|){7}', table)


def test_images_of_ones_own_are_cropped_at_224_corrupted_and_reduced(of_three, moved, tmp_path):
    photos = write_images(tmp_path / 'photos', ('ant', 'bee', 'cow'), 8)
    actual = evaluate(tmp_path / 'out', of_three, photos)
    files, errors = sorted(photos.glob('*/*')), {}
    for severity in range(6):
        small = []
        for file in files:
            pixels = np.asarray(Image.open(file).resize((224, 224), Image.Resampling.BICUBIC))
            if severity:
                pixels = np.roll(pixels, severity, axis=2)
            small.append(Image.fromarray(pixels).resize((8, 8), Image.Resampling.BICUBIC))
        best = predicted(of_three, np.stack(small))
        errors[severity] = np.mean([file.parent.name for file in files] != best)
    clean = errors.pop(0)
    assert 0 < clean < 1 and len(set(errors.values())) > 1  # else this test shows nothing
    mean = np.mean(list(errors.values()))
    expected = {'clean_error': clean, 'mean_error': mean, 'loss': mean - clean}
    assert actual == pytest.approx(expected)


def predicted(model, pixels) -> np.ndarray:
    module, params = mae_jax.load(model)
    logits = module.apply({'params': params}, ((pixels / 255 - 0.5) / 0.25).astype(np.float32))
    return np.array(('ant', 'bee', 'cow'))[np.asarray(logits).argmax(axis=1)]


def test_the_order_of_classes_is_that_of_the_outputs(of_three, unnamed, moved, photos, tmp_path):
    file = tmp_path / 'classes.txt'
    file.write_text('cow\n\nbee\nant\n')
    swapped = evaluate(tmp_path / 'swapped', unnamed, photos, classes=str(file))
    for name, new in (('ant', 'other'), ('cow', 'ant'), ('other', 'cow')):
        (photos / name).rename(photos / new)
    assert evaluate(tmp_path / 'named', of_three, photos) == swapped


def test_images_from_python_are_corrupted(of_three, moved, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)
    train = ArraySource(images[:6], [0, 1, 2] * 2, ('ant', 'bee', 'cow'))
    held_out = ArraySource(images[6:], [0, 1, 2] * 2, ('ant', 'bee', 'cow'))
    config = make_config(str(of_three), overrides=['batch_size=24'])
    run(config, str(tmp_path), train=train, held_out=held_out)
    sets = json.loads((tmp_path / 'results.json').read_text())['sets']
    assert {s['images'] for s in sets.values()} == {6}
    config = make_config(str(of_three), kind='imagenet_c', overrides=['batch_size=24'])
    with pytest.raises(UserError, match='images from Python are not ImageNet-C'):
        run(config, str(tmp_path), train=train, held_out=held_out)


def test_a_folder_is_read_by_its_splits_and_a_runs_own_as_the_run_did(fine_tuned, tmp_path):
    for folder, split in (('a/val', 'validation'), ('b/train', 'validation'), ('c/cat', '.')):
        (tmp_path / folder).mkdir(parents=True)
        config = make_config(str(fine_tuned[0]), data=str(tmp_path / folder[0]))
        assert config.robustness.kind == 'corruptions'
        assert (config.dataset.name, config.dataset.eval_split) == ('folder', split)
    config = make_config(str(fine_tuned[0]))
    assert config.dataset.name is None and config.dataset.path is None
    assert within(str(fine_tuned[0]), config) == str(fine_tuned[0] / 'robustness/corruptions')
    assert within(str(tmp_path / 'model.safetensors'), config) is None
    assert within('hf://owner/name', config) is None


@pytest.mark.parametrize('kind', ['folder', 'csv'])
def test_images_without_a_training_split_are_evaluated(of_three, tmp_path, kind, capsys):
    photos = write_images(tmp_path / 'photos/test', ('ant', 'bee', 'cow'), 8)
    files = sorted(photos.glob('*/*'))
    table = tmp_path / 'photos.csv'
    rows = [f'{file},{file.parent.name},test' for file in files]
    table.write_text('\n'.join(['file,class,split', *rows]))
    config = finetune.get_config()
    config.mode, config.init_from = 'eval', str(of_three)
    config.dataset.name, config.dataset.eval_crop_share = kind, 1.0
    config.dataset.path = str({'folder': tmp_path / 'photos', 'csv': table}[kind])
    run(config, str(tmp_path / 'run'))
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    top1 = np.mean(predicted(of_three, pixels) == [file.parent.name for file in files])
    assert f'24 held-out images: {top1:.4f} top-1' in capsys.readouterr().out
    config.mode = 'train'
    with pytest.raises(UserError, match='has test/ but no train/|no split .train.; it has test'):
        run(config, str(tmp_path / 'other'))
