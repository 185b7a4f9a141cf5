"""Colour jitter: pixels equal those of torchvision; factors and orders are uniform."""

import collections
import itertools
import pickle

import numpy as np
import pytest
from helpers.commands import ROOT
from PIL import Image

from configs import default
from mae_jax.config.data import make_augment
from mae_jax.data.transforms import color_jitter
from mae_jax.data.transforms.color_jitter import OPS, ColorJitter, parse_color_jitter
from mae_jax.data.transforms.randaugment import RandAugment
from mae_jax.errors import UserError

TORCHVISION = dict(np.load(ROOT / 'tests/golden' / 'color_jitter.npz'))
RECIPE = 'jitter-b0.4-c0.4-s0.4-h0.1'
JITTER = ColorJitter(0.4, 0.4, 0.4, 0.1)


@pytest.mark.parametrize('op', TORCHVISION['ops'])
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_pixels_are_torchvisions(mode, op):
    image = Image.fromarray(TORCHVISION[f'{mode}/image'])
    cases = np.flatnonzero(TORCHVISION[f'{mode}/op'] == op)
    assert len(cases) > 5
    for case in cases:
        ours = color_jitter.apply(image, op, float(TORCHVISION[f'{mode}/factor'][case]))
        assert (ours.mode, ours.size) == (image.mode, image.size)
        np.testing.assert_array_equal(np.asarray(ours), TORCHVISION[f'{mode}/result'][case])


@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_a_jittered_image_is_torchvisions_for_what_it_drew(mode, monkeypatch):
    image = Image.fromarray(TORCHVISION[f'{mode}/image'])
    keys = ('order', 'factors', 'result')
    orders, factors, results = (TORCHVISION[f'{mode}/jitter/{key}'] for key in keys)
    for order, drawn, result in zip(orders, factors, results, strict=True):
        draw = [(str(TORCHVISION['ops'][i]), float(drawn[i])) for i in order]
        monkeypatch.setattr(ColorJitter, 'draw', lambda self, rng, draw=draw: draw)
        np.testing.assert_array_equal(np.asarray(JITTER(image, None)), result)
    assert len({tuple(order) for order in orders}) > 6


@pytest.mark.parametrize('op', ['saturation', 'hue'])
def test_saturation_and_hue_do_not_change_a_grey_image(op):
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    ours = color_jitter.apply(image, op, 0.3)
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(image))


def test_factors_are_uniform_in_their_ranges():
    rng = np.random.default_rng(0)
    values = collections.defaultdict(list)
    for _ in range(8000):
        for op, factor in ColorJitter(0.4, 1.5, 0.2, 0.1).draw(rng):
            values[op].append(factor)
    limits = {'brightness': (0.6, 1.4), 'contrast': (0, 2.5), 'saturation': (0.8, 1.2)}
    limits |= {'hue': (-0.1, 0.1)}
    assert set(values) == set(limits)
    for op, (low, high) in limits.items():
        assert low <= min(values[op]) and max(values[op]) <= high
        eighths, _ = np.histogram(values[op], bins=8, range=(low, high))
        assert eighths.sum() == 8000
        assert abs(eighths - 1000).max() < 125  # 4.2 standard deviations
    assert abs(np.corrcoef([values[op] for op in OPS]) - np.eye(4)).max() < 0.05


def test_every_order_is_as_likely():
    rng = np.random.default_rng(1)
    orders = collections.Counter(tuple(op for op, _ in JITTER.draw(rng)) for _ in range(6000))
    assert set(orders) == set(itertools.permutations(OPS))
    assert max(abs(count - 250) for count in orders.values()) < 67  # 4.3 standard deviations


def test_an_operation_of_strength_0_does_not_change_the_others():
    for seed in range(20):
        full = JITTER.draw(np.random.default_rng(seed))
        some = ColorJitter(contrast=0.4, hue=0.1).draw(np.random.default_rng(seed))
        assert some == [(op, factor) for op, factor in full if op in ('contrast', 'hue')]
    assert ColorJitter().draw(np.random.default_rng(0)) == []


def test_a_recipe_names_the_strengths():
    assert parse_color_jitter(RECIPE) == JITTER
    assert parse_color_jitter('jitter-h0.5') == ColorJitter(hue=0.5)
    assert parse_color_jitter('jitter-s1-b0') == ColorJitter(saturation=1.0)


@pytest.mark.parametrize(
    ('spec', 'reason'),
    [
        ('color-b0.4', "policy 'color'"),
        ('', "policy ''"),
        ('jitter', 'it names nothing to change'),
        ('jitter-g0.1', "'g0.1' is unknown"),
        ('jitter-b', "'b' is unknown"),
        ('jitter-b-0.4', "'b' is unknown"),
        ('jitter-binf', "'binf' is unknown"),
        ('jitter-b0.4.1', "'0.4.1' in 'b0.4.1' is no float"),
        ('jitter-h0.6', "'h0.6' is not within 0 and 0.5"),
        ('jitter-s1e9', "'s1e9' is not within 0 and 255"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_explained(spec, reason):
    with pytest.raises(UserError, match=rf"dataset\.augment='{spec}'.*{reason}.*{RECIPE}"):
        parse_color_jitter(spec)


def test_images_it_is_not_defined_for_are_refused():
    rng = np.random.default_rng(0)
    for image, kind in (
        (np.zeros((4, 4, 3), np.uint16), r'uint16 of shape \(4, 4, 3\)'),
        (np.zeros((4, 4, 4), np.uint8), r'uint8 of shape \(4, 4, 4\)'),
        (Image.new('RGBA', (4, 4)), 'mode RGBA'),
        (Image.new('I;16', (4, 4)), 'mode I;16'),
    ):
        hint = r".*set dataset\.augment=''"
        with pytest.raises(UserError, match='8-bit RGB and grey.*not for ' + kind + hint):
            JITTER(image, rng)


def test_it_can_be_pickled():
    assert pickle.loads(pickle.dumps(JITTER)) == JITTER


def test_the_field_names_an_augmentation_by_its_first_word():
    config = default.get_config()
    assert make_augment(config) is None
    config.dataset.augment = RECIPE
    assert make_augment(config) == JITTER
    config.dataset.augment = 'rand-m9-mstd0.5-inc1'
    assert make_augment(config) == RandAugment((124, 116, 104))
    for unknown in ('augmix-m3', 'jitters-b0.4', '-b0.4'):
        config.dataset.augment = unknown
        with pytest.raises(UserError, match=rf"augment='{unknown}' must.*'rand'.*'jitter'"):
            make_augment(config)
