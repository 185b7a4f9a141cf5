"""`mae-jax fields` shows every field of every recipe, as the files define them."""

import re

import pytest
from helpers.commands import ROOT

from mae_jax.config.fields import field_names
from mae_jax.config.files import load_config
from mae_jax.config.reference import SECTIONS, format_fields, list_fields


def test_every_field_is_listed_with_its_default_and_comment():
    fields = {field.name: field for field in list_fields('default')}
    config = load_config('default')
    assert {*fields} == {*field_names(config)}
    assert fields['optimizer.b2'].default == '0.95' == str(config.optimizer.b2)
    assert fields['model.width'].default == 'unset'
    assert fields['dataset.flip'] == ('dataset.flip', 'True', '')
    assert fields['online_probe.share'].comment == 'of the labelled images, training and held out'
    source = (ROOT / 'configs' / 'default.py').read_text()
    comments = re.findall(r'^    \S+ = .*?  # (.*)$', source, re.M)
    comments = [text for text in comments if text]
    assert [field.comment for field in fields.values() if field.comment] == comments


@pytest.mark.parametrize('recipe', SECTIONS)
def test_no_field_of_a_task_is_missing(recipe):
    listed = {field.name for section in SECTIONS for field in list_fields(section)}
    assert {*field_names(load_config(recipe))} <= listed


def test_later_sections_hold_what_differs():
    fields = {field.name: field.default for field in list_fields('finetune')}
    assert fields['batch_size'] == 'unset' and fields['mix.switch_probability'] == '0.5'
    assert 'optimizer.b1' not in fields and 'model.patch_size' not in fields
    assert next(field for field in list_fields('knn') if field.name == 'knn.neighbours').comment


def test_the_list_fits_80_columns_and_a_prefix_chooses():
    lines = format_fields().splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) > 100
    optimizer = format_fields('optimizer.w')
    assert re.findall(r'^  (\S+) =', optimizer, re.M) == [
        'optimizer.warmup_epochs',
        'optimizer.weight_decay',
        'optimizer.warmup_epochs',
        'optimizer.warmup_from',
        'optimizer.weight_decay',
    ]
    assert 'dataset.eval_crop_share' in format_fields('crop')  # which none begins with
