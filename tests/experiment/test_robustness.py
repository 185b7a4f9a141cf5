"""Robustness of a classifier as a whole, on miniatures of the sets, beside NumPy by hand."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.robustness import SETS, noise, write_classifier, write_pictures
from helpers.shared_runs import first_devices
from helpers.slow import slow_after
from PIL import Image

import mae_jax
from mae_jax.evaluation.robustness import ALEXNET, imagenet_wnids
from mae_jax.experiment.robustness_config import make_config
from mae_jax.experiment.run import run

WNIDS = imagenet_wnids()
FIFTH = WNIDS[3::5]
"""200 classes."""
BATCH = 24  # divides among 1, 3 and 8 devices


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('robustness')


@pytest.fixture(scope='module')
def of_imagenet(folder):
    """A classifier of 1,000 classes that does not name them."""
    return write_classifier(folder / 'imagenet.safetensors', 1000)


@pytest.fixture(scope='module')
def pool(of_imagenet):
    """Images, and their logits."""
    pixels = noise(2000)
    return pixels, logits_of(of_imagenet, pixels)


@functools.cache
def predictor(model: Path):
    module, params = mae_jax.load(model)
    return functools.partial(jax.jit(module.apply), {'params': params})


def logits_of(model: Path, pixels: np.ndarray) -> np.ndarray:
    inputs = ((pixels / 255 - 0.5) / 0.25).astype(np.float32)
    return np.asarray(predictor(model)(inputs))


def read(folder: Path) -> tuple[np.ndarray, list[str]]:
    """The pixels of every image in the folders of classes, and the class of each."""
    files = sorted(folder.glob('*/*'))
    return np.stack([np.asarray(Image.open(file)) for file in files]), [
        f.parent.name for f in files
    ]


@pytest.fixture(scope='module')
def two_hundred(folder, pool):
    """Images of 200 classes: up to 60 that the classifier takes for one, and another."""
    pixels, logits = pool
    best = logits[:, [WNIDS.index(name) for name in FIFTH]].argmax(axis=1)
    pictures = {}
    for number, name in enumerate(FIFTH):
        rows = [*np.flatnonzero(best == number)[:60], number]
        pictures[name] = pixels[rows]
    return write_pictures(folder / 'imagenet-a', pictures)


@pytest.fixture(scope='module')
def imagenet_c(folder, pool):
    """Seven images of four classes for each of 75 sets, of which the classifier knows a part."""
    pixels, logits = pool
    best, rng = logits.argmax(axis=1), np.random.default_rng(0)
    for name in SETS:
        known = rng.integers(0, 8)
        pictures = {}
        for number in np.bincount(best).argsort()[-4:]:
            rows = rng.choice(np.flatnonzero(best == number), known), rng.choice(2000, 7 - known)
            pictures[WNIDS[number]] = pixels[np.concatenate(rows)]
        write_pictures(folder / 'imagenet-c' / name, pictures)
    return folder / 'imagenet-c'


def evaluate(workdir, model, data=None, kind=None, classes=None, images=None, **fields):
    data = data and str(data)
    config = make_config(str(model), data=data, kind=kind, classes=classes, images=images)
    config.update_from_flattened_dict({'batch_size': BATCH, 'model.dtype': 'float32'} | fields)
    return run(config, str(workdir))


@pytest.mark.parametrize('devices', [1, 3, 8])
def test_top1_is_among_the_200_classes_alone(of_imagenet, two_hundred, tmp_path, devices, capsys):
    pixels, labels = read(two_hundred)
    logits = logits_of(of_imagenet, pixels)
    among_all = np.mean(np.array(WNIDS)[logits.argmax(axis=1)] == labels)
    numbers = [WNIDS.index(name) for name in FIFTH]
    expected = np.mean(np.array(FIFTH)[logits[:, numbers].argmax(axis=1)] == labels)
    assert 0.1 < expected < 0.9 and among_all < expected  # else this test shows nothing
    with first_devices(devices):
        actual = evaluate(tmp_path, of_imagenet, two_hundred, 'imagenet_r')
    assert actual == {'top1': pytest.approx(expected, abs=1e-12)}
    assert f'| {100 * expected:.1f} | 48.3 |' in (tmp_path / 'table.md').read_text()
    assert not (tmp_path / 'plot.png').exists()
    assert 'taken for ImageNet' in capsys.readouterr().out


@pytest.mark.parametrize('devices', slow_after(1, (3, 1, 8)))
def test_mce_is_over_all_classes_relative_to_alexnet(of_imagenet, imagenet_c, tmp_path, devices):
    errors = {}
    for name in SETS:
        pixels, labels = read(imagenet_c / name)
        best = np.array(WNIDS)[logits_of(of_imagenet, pixels).argmax(axis=1)]
        errors[name] = np.mean(best != labels)
    ce = [
        sum(errors[f'{name}/{severity}'] for severity in (1, 2, 3, 4, 5)) / 5 / alexnet
        for name, alexnet in ALEXNET.items()
    ]
    with first_devices(devices):
        actual = evaluate(tmp_path, of_imagenet, imagenet_c)
    assert actual['mce'] == pytest.approx(sum(ce) / 15)
    assert actual['mean_error'] == pytest.approx(np.mean(list(errors.values())))
    assert 0.2 < actual['mean_error'] < 0.8
    sets = json.loads((tmp_path / 'results.json').read_text())['sets']
    assert {n: 1 - s['correct'] / s['images'] for n, s in sets.items()} == pytest.approx(errors)
    assert {s['images'] for s in sets.values()} == {28}
    assert f'{100 * actual["mce"]:.1f}' in (tmp_path / 'table.md').read_text()


def test_an_evaluation_goes_on_where_it_was_stopped(of_imagenet, imagenet_c, tmp_path, monkeypatch):
    whole = evaluate(tmp_path, of_imagenet, imagenet_c)
    file = tmp_path / 'results.json'
    content = json.loads(file.read_text())
    done = content['sets']
    for name in SETS[40:]:
        del done[name]
    kept, done[SETS[3]]['correct'] = done[SETS[3]]['correct'], 0  # shows that it is taken as it is
    done[SETS[4]] = {'data': 'other images', 'correct': 0, 'images': 28}
    file.write_text(json.dumps(content))
    again = evaluate(tmp_path, of_imagenet, imagenet_c)
    assert again['mean_error'] == pytest.approx(whole['mean_error'] + kept / 28 / 75)
    other = evaluate(tmp_path, of_imagenet, imagenet_c, images=7)  # of other images: all anew
    assert {s['images'] for s in json.loads(file.read_text())['sets'].values()} == {7}
    assert other != again
