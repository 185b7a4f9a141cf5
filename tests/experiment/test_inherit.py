"""Which fields of the data come from the run `init_from`."""

import pytest

from configs import default, finetune, finetune_digits, linprobe, quickstart
from mae_jax.config.changes import changed_fields
from mae_jax.config.saved import to_json
from mae_jax.experiment.inherit import inherit


@pytest.mark.parametrize('name', [None, 'folder'])
def test_bands_and_missing_value_belong_to_the_data_set_that_is_inherited(
    tmp_path, monkeypatch, name
):
    pretraining = default.get_config()
    pretraining.dataset.update(name='folder', path='/data', bands=(3, 2, 1), nodata=-9999.0)
    monkeypatch.setattr('mae_jax.experiment.inherit.read_config', lambda path: pretraining)
    config = finetune.get_config()
    config.init_from = str(tmp_path / 'pretrained')
    config.dataset.name = name
    dataset = inherit(config, str(tmp_path / 'new')).dataset
    assert dataset.channels == 3
    expected = (None, None, None) if name else ('/data', (3, 2, 1), -9999.0)
    assert (dataset.path, dataset.bands, dataset.nodata) == expected


@pytest.mark.parametrize(
    ('fields', 'expected'),
    [
        ({}, 0.3),
        ({'path': '/data/'}, 0.3),
        ({'path': '/other'}, None),
        ({'name': 'folder', 'path': '/data'}, None),
        ({'held_out_share': 0.1}, 0.1),
    ],
)
@pytest.mark.parametrize('earlier', [False, True])
def test_what_pretraining_held_out_stays_held_out(tmp_path, monkeypatch, fields, expected, earlier):
    pretraining = default.get_config()
    pretraining.dataset.update(name='folder', path='/data', held_out_share=0.3)
    if earlier:  # it held out a twentieth
        del pretraining.dataset['held_out_share']
        expected = 0.05 if expected == 0.3 else expected
    monkeypatch.setattr('mae_jax.experiment.inherit.read_config', lambda path: pretraining)
    config = finetune.get_config()
    config.init_from = str(tmp_path / 'pretrained')
    config.dataset.update(fields)
    assert inherit(config, str(tmp_path / 'new')).dataset.held_out_share == expected


def test_a_run_of_an_earlier_version_goes_on_with_what_it_held_out(tmp_path):
    config = default.get_config()
    (tmp_path / 'checkpoints' / '1').mkdir(parents=True)
    saved = config.copy_and_resolve_references()
    del saved.dataset['held_out_share']
    (tmp_path / 'config.json').write_text(to_json(saved))
    resumed = inherit(config, str(tmp_path))
    assert resumed.dataset.held_out_share == 0.05
    assert changed_fields(saved, resumed) == {}


@pytest.mark.parametrize('name', [None, 'folder'])
def test_images_are_mirrored_as_in_pretraining(tmp_path, monkeypatch, name):
    pretraining = quickstart.get_config()
    monkeypatch.setattr('mae_jax.experiment.inherit.read_config', lambda path: pretraining)
    config = finetune.get_config()
    config.init_from = str(tmp_path / 'pretrained')
    config.dataset.name = name
    assert inherit(config, str(tmp_path / 'new')).dataset.flip is False
    config.dataset.flip = True
    assert inherit(config, str(tmp_path / 'new')).dataset.flip is True
    assert finetune.paper().dataset.flip is True and linprobe.paper().dataset.flip is True


def test_images_are_mirrored_where_nothing_says_otherwise(tmp_path):
    config = finetune_digits.get_config()
    config.dataset.flip = None
    assert inherit(config, str(tmp_path / 'new')).dataset.flip is True
