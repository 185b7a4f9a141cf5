"""A run is evaluated from its work directory alone."""

import json
import re
import shutil

import pytest
from helpers.tiny_runs import classifying, evaluations, make_image_folder

import mae_jax
from configs import finetune
from mae_jax.errors import UserError
from mae_jax.experiment.saved import saved_config


@pytest.fixture
def workdir(fine_tuned, tmp_path):
    """A copy of a fine-tuned run, whose config file and `init_from` are not at hand."""
    return shutil.copytree(fine_tuned[0], tmp_path / 'run')


def change(workdir, *names, value=None):
    """Sets, or without a value removes, a field of config.json."""
    path = workdir / 'config.json'
    content = node = json.loads(path.read_text())
    for name in names[:-1]:
        node = node[name]
    if value is None:
        del node[names[-1]]
    else:
        node[names[-1]] = value
    path.write_text(json.dumps(content))


def evaluate(workdir, *settings):
    config = saved_config(workdir, settings)
    config.mode = 'eval'
    return mae_jax.run(config, workdir)


def test_its_metrics_are_those_of_the_run_and_its_config_is_left(workdir, capsys):
    before = (workdir / 'config.json').read_bytes()
    evaluate(workdir)
    top1 = re.search(r'held-out images: (\d\.\d+) top-1', capsys.readouterr().out)[1]
    assert top1 == f'{list(evaluations(workdir).values())[-1]["eval/top1"]:.4f}'
    assert (workdir / 'config.json').read_bytes() == before


def test_a_config_of_an_earlier_version_is_completed(workdir):
    for names in (('dataset', 'repeats'), ('model', 'attention'), ('step_timeout_s',)):
        change(workdir, *names)
    evaluate(workdir)
    assert saved_config(workdir).dataset.repeats == 1


def test_what_may_change_can_be_given_as_text(workdir, capsys):
    evaluate(workdir, 'dataset.eval_split=test', 'eval_examples=16', 'per_class=False')
    output = capsys.readouterr().out
    assert "dataset.eval_split was 'validation', now 'test'" in output
    config = saved_config(workdir, ['dataset.path=/a=b', 'image_size=(16, 8)', 'num_steps=None'])
    assert (config.dataset.path, config.image_size, config.num_steps) == ('/a=b', (16, 8), None)


@pytest.mark.parametrize(
    ('setting', 'message'),
    [
        ('dataset.pfad=/x', "no config field 'dataset.pfad'"),
        ('datasets.path=/x', "no config field 'datasets.path'"),
        ('model.width=32', r'belongs to another run \(model\.width was 16, now 32'),
    ],
)
def test_a_field_that_does_not_exist_or_makes_another_run_is_named(workdir, setting, message):
    with pytest.raises(UserError, match=message):
        evaluate(workdir, setting)


@pytest.mark.parametrize(
    ('names', 'value'),
    [
        (('dataset', 'name'), 'evil:photos'),
        (('task',), 'evil:task'),
        (('dataset', 'name'), 'huggingface:x'),
    ],
)
def test_code_that_a_config_names_is_imported_only_if_the_user_says_so(workdir, names, value):
    change(workdir, *names, value=value)
    field = '.'.join(names)
    with pytest.raises(UserError, match=f'names code to import .*give {field}={value}'):
        saved_config(workdir)
    assert saved_config(workdir, [f'{field}={value}'])


def test_a_directory_without_a_checkpoint_is_no_run(tmp_path):
    with pytest.raises(UserError, match='is not the work directory of a run'):
        saved_config(tmp_path)


def test_images_that_have_moved_are_found_by_their_new_path(pretrained, tmp_path):
    for split in ('train', 'val'):
        make_image_folder(tmp_path / 'images' / split, 'ab')
    fields = {
        'dataset.name': 'folder',
        'dataset.path': str(tmp_path / 'images'),
        'num_steps': 1,
        'eval_every_steps': 0,
    }
    mae_jax.run(classifying(finetune.get_config, pretrained[0], fields), tmp_path / 'run')
    (tmp_path / 'images').rename(tmp_path / 'moved')
    with pytest.raises(UserError, match='is not a folder'):
        evaluate(tmp_path / 'run')
    evaluate(tmp_path / 'run', f'dataset.path={tmp_path / "moved"}')
