"""`--config.field=value`, against ml_collections' own flags where these read it right."""

import sys
from unittest import mock

import pytest
from absl import flags
from helpers.commands import ROOT
from ml_collections import config_flags

from mae_jax.cli.arguments import split_overrides
from mae_jax.config.fields import apply_overrides, similar_field
from mae_jax.config.files import load_config
from mae_jax.config.saved import to_json
from mae_jax.errors import UserError, did_you_mean


def read(*arguments, config='default'):
    """The config that a command makes of its arguments."""
    overrides, others = split_overrides(arguments)
    assert not others
    return load_config(config, overrides)


def read_by_absl(*arguments, config='default'):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file('config', flag_values=values)
    argv = ['main.py', f'--config={ROOT}/configs/{config}.py', *arguments]
    with mock.patch.object(sys, 'argv', argv):  # where ml_collections looks for fields
        values(argv)
    return values['config'].value


@pytest.mark.parametrize(
    'arguments',
    [
        ('--config.batch_size=64', '--config.num_steps=100', '--config.model.depth=6'),
        ('--config.batch_size', '64', '--config.dataset.path', '/a b'),
        ('-config.num_epochs=3', '--config.optimizer.base_lr=1e-3'),
        ('--noconfig.dataset.flip', '--config.deterministic', '--config.seed=1'),
        ('--config.dataset.flip=false', '--config.deterministic=1'),
        ('--config.batch_size=1', '--config.batch_size=2'),
        ('--config.image_size=64',),
        ('--config.image_size=(64, 96)', '--config.dataset.mean=[.1,.2,.3]'),
        ('--config.dataset.crop_scale=(.5,1)', '--config.profile_steps=(3,7)'),
        ("--config.loggers=('a:b','c:d')", '--config.mask.strategy=a:b=c'),
        ('--config.dataset.augment=', '--config.dataset.name=None'),
    ],
)
def test_values_are_those_of_ml_collections(arguments):
    ours, theirs = read(*arguments), read_by_absl(*arguments)
    assert to_json(ours) == to_json(theirs) != to_json(read())
    assert ours.is_locked


@pytest.mark.parametrize(
    ('arguments', 'field', 'value'),
    [
        # ml_collections joins them: 64 x 96 pixels.
        (('--config.image_size=64', '--config.image_size=96'), 'image_size', (96,)),
        (('--config.loggers=a:b,c:d',), 'loggers', ('a:b', 'c:d')),
        (('--config.loggers=a:b',), 'loggers', ('a:b',)),
        (('--config.num_steps=7', '--config.num_steps=None'), 'num_steps', None),
        (('--config.batch_size=1_024',), 'batch_size', 1024),
    ],
)
def test_further_values(arguments, field, value):
    assert read(*arguments)[field] == value


def test_an_override_does_not_reach_a_field_of_the_same_name_in_another_group():
    config = read('--config.mask.strategy=grid', '--config.target.name=pixel')
    assert (config.target.name, config.dataset.name) == ('pixel', 'imagenet2012')
    with pytest.raises(UserError, match="no config field 'name'"):
        apply_overrides(config, ['name=digits'])


@pytest.mark.parametrize(
    ('field', 'nearest'),
    [
        ('optimiser.base_lr', 'optimizer.base_lr'),
        ('base_lr', 'optimizer.base_lr'),
        ('Batch_Size', 'batch_size'),
        ('qwertyuiop', None),
    ],
)
def test_the_nearest_field_is_named(field, nearest):
    known = ['batch_size', 'optimizer.base_lr', 'optimizer.min_lr', 'dataset.name']
    assert similar_field(field, known) == (f': did you mean {nearest!r}?' if nearest else '')


def test_of_a_mapping_the_value_is_shown():
    assert did_you_mean('cofnig', {'config': 'my/config.py'}) == ": did you mean 'my/config.py'?"
