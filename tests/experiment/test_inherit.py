"""Which fields of the data come from the run `init_from`."""

import pytest

from configs import default, finetune
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
