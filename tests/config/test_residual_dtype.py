"""`model.residual_dtype`: its default, and runs of earlier versions, whose stream is bfloat16."""

import jax.numpy as jnp
import pytest

from mae_jax.config.changes import changed_fields
from mae_jax.config.model import describe_dtype, make_encoder, make_mae
from mae_jax.config.recipe import keep
from mae_jax.configs import default
from mae_jax.errors import UserError
from mae_jax.experiment.setup import complete
from mae_jax.models.transformer import stream_dtype


def config_with(**fields):
    config = default.get_config()
    config.model.update(variant='vit_tiny', dtype='bfloat16', **fields)
    return config


def earlier_config():
    config = config_with()
    del config.model['residual_dtype']
    return config


@pytest.mark.parametrize(
    'fields, stream',
    [
        ({}, 'float32'),
        ({'residual_dtype': 'float32'}, 'float32'),
        ({'residual_dtype': 'bfloat16'}, 'bfloat16'),
        ({'residual_dtype': 'bfloat16', 'dtype': 'float32'}, 'float32'),
    ],
)
def test_the_stream_is_float32_unless_both_are_bfloat16(fields, stream):
    config = config_with()
    config.model.update(fields)
    for make in (make_mae, make_encoder):
        assert stream_dtype(make(config)) == jnp.dtype(stream)


def test_another_dtype_is_refused_by_name():
    with pytest.raises(UserError, match=r"model\.residual_dtype='float16': choose 'auto'"):
        make_encoder(config_with(residual_dtype='float16'))


def test_a_run_writes_down_the_dtype_that_it_has():
    assert complete(config_with(), examples=100, devices=1).model.residual_dtype == 'float32'


def test_a_run_of_an_earlier_version_goes_on_with_a_bfloat16_stream():
    begun, config = earlier_config(), config_with()
    assert stream_dtype(make_encoder(begun)) == jnp.bfloat16
    keep(config, begun)
    assert config.model.residual_dtype == 'bfloat16'
    assert changed_fields(begun, complete(config, examples=100, devices=1)) == {}


def test_a_begun_run_keeps_its_stream_and_cannot_be_given_another():
    begun, config = config_with(residual_dtype='float32'), config_with()
    keep(config, begun)
    assert config.model.residual_dtype == 'float32'
    other = config_with(residual_dtype='bfloat16')
    keep(other, begun)
    assert list(changed_fields(begun, other)) == ['model.residual_dtype']


def test_reports_name_the_stream_where_it_differs():
    assert describe_dtype(config_with().model) == 'bfloat16, residual stream float32'
    assert describe_dtype(earlier_config().model) == 'bfloat16'
    config = config_with()
    config.model.dtype = 'float32'
    assert describe_dtype(config.model) == 'float32'
