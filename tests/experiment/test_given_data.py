"""Runs on sources that are passed from Python."""

import json

import numpy as np
import pytest
from helpers.tiny_runs import PLAIN, classifying, flat, metrics, pretraining

import mae_jax
from configs import finetune, knn
from mae_jax.data.sources.digits import digits_source
from mae_jax.data.sources.subset import hold_out
from mae_jax.errors import UserError

QUICK = {'num_steps': 2, 'log_every_steps': 1, 'eval_every_steps': 2, 'image_every_steps': 0}


@pytest.fixture(scope='module')
def digits():
    """The digits as arrays of a user's: (training, held out)."""
    return tuple(
        mae_jax.ArraySource(source.images, source.labels, source.class_names, source.name)
        for source in map(digits_source, ('train', 'validation'))
    )


def test_a_run_on_arrays_is_the_run_on_the_same_data_by_name(digits, tmp_path):
    train, held_out = digits
    mae_jax.run(pretraining(**QUICK), tmp_path / 'named')
    config = pretraining(**QUICK)
    mae_jax.run(config, tmp_path / 'given', train=train, held_out=held_out)
    assert metrics(tmp_path / 'given') == metrics(tmp_path / 'named')
    assert json.loads((tmp_path / 'given/config.json').read_text())['dataset']['name'] == 'python'
    assert config.dataset.name == 'digits'  # the caller's config is left as it was


def test_a_run_resumes_with_the_same_arrays_only(digits, tmp_path, capsys):
    train, held_out = digits
    mae_jax.run(pretraining(**QUICK), tmp_path, train=train, held_out=held_out)
    again = mae_jax.ArraySource(train.images.copy(), train.labels, train.class_names, train.name)
    mae_jax.run(pretraining(**QUICK), tmp_path, train=again, held_out=held_out)
    assert 'resuming at step 2' in capsys.readouterr().out
    other = mae_jax.ArraySource(255 - train.images, train.labels, train.class_names, train.name)
    with pytest.raises(UserError, match='run on other data .*dataset was'):
        mae_jax.run(pretraining(**QUICK), tmp_path, train=other, held_out=held_out)
    config = pretraining(**QUICK)
    config.dataset.name = 'python'
    with pytest.raises(UserError, match=r'passed from Python: call mae_jax\.run\(config'):
        mae_jax.run(config, tmp_path)


def test_without_held_out_ten_of_each_class_are_kept_for_evaluation(digits, tmp_path, capsys):
    mae_jax.run(pretraining(**QUICK), tmp_path, train=digits[0])
    held_out = hold_out(digits[0])[1].rows
    assert np.bincount(digits[0].labels[held_out]).min() == 10
    assert f'{1437 - len(held_out):,} examples of python' in capsys.readouterr().out
    assert np.isfinite(metrics(tmp_path)[-1]['eval/loss'])


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ({'train': np.zeros((3, 8, 8, 1))}, 'train is a ndarray without num_classes'),
        ({'held_out': 0}, 'held_out is given without train'),
    ],
)
def test_what_is_no_source_is_explained(tmp_path, given, message):
    with pytest.raises(UserError, match=message):
        mae_jax.run(pretraining(), tmp_path, **given)


def test_classes_of_arrays_are_those_of_the_classifier(digits, pretrained, tmp_path):
    labels = ['odd' if label % 2 else 'even' for label in digits[0].labels]
    train = mae_jax.ArraySource(digits[0].images, labels)
    config = classifying(finetune.get_config, pretrained[0], PLAIN | {'num_steps': 1})
    state = mae_jax.run(config, tmp_path, train=train)
    assert flat(state.params)['head/kernel'].shape == (16, 2)


def test_a_frozen_encoder_is_evaluated_on_arrays(digits, pretrained, tmp_path):
    config = knn.get_config()
    config.init_from = str(pretrained[0])
    config.knn.shots = ()
    by_name = mae_jax.run(config, tmp_path / 'named')
    given = mae_jax.run(config, tmp_path / 'given', train=digits[0], held_out=digits[1])
    assert given == by_name
