"""What would make a run's result worthless is printed before it starts, and at its end."""

import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers.tiny_runs import PLAIN, classifying, make_image_folder, pretraining

from configs import finetune, finetune_digits, quickstart
from mae_jax.experiment.cautions import (
    at_chance,
    cautions,
    empty_classes,
    far_anchors,
    standard_error,
)
from mae_jax.experiment.inherit import inherit
from mae_jax.experiment.run import run
from mae_jax.experiment.setup import make_setup


def of(config, workdir) -> list[str]:
    return list(cautions(make_setup(inherit(config, workdir), workdir)))


@pytest.mark.parametrize('make', [quickstart, finetune_digits])
def test_a_sound_run_has_none(make, tmp_path):
    assert of(make.get_config(), tmp_path) == []


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'batch_size': 4096}, 'batch_size=4096 is larger than the data set .1,437 images'),
        ({'num_steps': 49}, 'a run of 49 steps is too short'),
        ({'optimizer.warmup_epochs': 80.0}, 'warm-up is longer than the run'),
        ({'optimizer.base_lr': 0.1}, r'learning rate 2\.5e-02 .* 24 times above .*base_lr=0\.004'),
        ({'optimizer.base_lr': 1e-5}, r'learning rate 2\.5e-06 .* 416 times below'),
    ],
)
def test_what_makes_a_result_worthless_is_named(fields, message, tmp_path):
    config = quickstart.get_config()
    config.update_from_flattened_dict(fields)
    lines = of(config, tmp_path)
    assert any(re.search(message, line) for line in lines), lines


@pytest.mark.devices(8)
@pytest.mark.parametrize(('fsdp', 'slow'), [(4, False), (8, True)])
def test_fsdp_over_several_slices_is_called_slow(fsdp, slow, tmp_path, monkeypatch):
    """Two slices of four devices, as JAX numbers those of two hosts of GPUs."""
    of_host = property(lambda device: device.id // 4)
    monkeypatch.setattr(jax.Device, 'slice_index', of_host, raising=False)
    config = quickstart.get_config()
    config.mesh.fsdp = fsdp
    sentence = 'mesh.fsdp=8 spans slices of 4 devices: steps will be slow.'
    assert of(config, tmp_path) == ([sentence] if slow else [])


@pytest.mark.parametrize(
    ('size', 'anchors', 'far'),
    [((100, 100), (32, 64), True), ((400, 800), (32, 64), False), ((400, 400), (2, 4), True)],
)
def test_anchors_far_from_the_size_of_the_boxes_are_named(size, anchors, far):
    """Boxes of 10 x 40 pixels in images of 200 x 200: of 10, 40 and 40 pixels a side."""
    boxes = np.array([[0, 0, 10, 40], [50, 60, 60, 100], [0, 0, 40, 10]], np.float32)
    source = SimpleNamespace(boxes=boxes, starts=np.array([0, 1, 3]), sizes=np.full((2, 2), 200))
    sentences = list(far_anchors(source, size, anchors))
    assert len(sentences) == far
    if far:
        assert f'about {size[0] // 10} pixels a side' in sentences[0]
    assert not list(far_anchors(SimpleNamespace(), size, anchors))


def test_classes_without_examples_are_named():
    labels = np.array([0, 2, 2, -1])
    source = SimpleNamespace(labels=labels, num_classes=4, class_names=['a', 'b', 'c', 'd'])
    (line,) = empty_classes('training', source)
    assert '2 of 4 classes have no training image' in line and 'b, d' in line
    source.labels = np.arange(4)
    assert list(empty_classes('held-out', source)) == []
    del source.labels  # a source that does not list them
    assert list(empty_classes('held-out', source)) == []


@pytest.mark.parametrize(
    ('top1', 'labels', 'warned'),
    [
        (0.10, None, True),
        (0.13, None, False),
        (0.50, np.repeat([0, 1], 500), True),
        (0.90, np.repeat([0, 1], [900, 100]), True),  # always the commonest class
        (0.95, np.repeat([0, 1], [900, 100]), False),
    ],
)
def test_an_accuracy_that_guessing_reaches_is_called_so(top1, labels, warned):
    line = at_chance(top1, labels, 10, 1000)
    assert (line is not None) == warned
    if warned:
        assert f'top-1 {top1:.4f} is no better than guessing' in line


def test_the_standard_error_is_stated_where_images_are_few():
    assert standard_error(300) == ''
    text = standard_error(25)  # sqrt(.5 * .5 / 25)
    assert text == ' (standard error up to 0.10)'


def test_the_sentences_are_printed_before_and_after_a_run(pretrained, tmp_path, capsys):
    for split in ('train', 'val'):
        make_image_folder(tmp_path / split, 'abcd')  # noise has no classes
    data = {'dataset.name': 'folder', 'dataset.path': str(tmp_path), 'dataset.flip': False}
    fields = PLAIN | data | {'num_steps': 2, 'eval_every_steps': 2, 'optimizer.base_lr': 1e-12}
    run(classifying(finetune.get_config, pretrained[0], fields), tmp_path / 'run')
    printed = capsys.readouterr().out
    before, after = printed.split('compiling')
    assert 'caution: a run of 2 steps is too short' in before
    assert 'times below what suits' in before
    assert 'is no better than guessing (0.2500)' in after


def test_the_model_is_three_lines_and_the_table_a_file(tmp_path, capsys):
    run(pretraining(), tmp_path)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert lines[0].startswith('encoder: 2 blocks of width')
    assert 'of them trained (parameters.txt)' in lines[2]
    assert '|' not in printed
    assert 'encoder/blocks/block_*/' in (tmp_path / 'parameters.txt').read_text()
