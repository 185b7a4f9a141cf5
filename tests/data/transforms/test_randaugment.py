"""RandAugment: pixels, levels and distribution equal those of timm."""

import collections
import pickle

import numpy as np
import pytest
from helpers.commands import ROOT
from PIL import Image

from mae_jax.data.transforms import randaugment
from mae_jax.data.transforms.randaugment import RandAugment, parse_randaugment
from mae_jax.errors import UserError

TIMM = dict(np.load(ROOT / 'tests/golden' / 'randaugment.npz'))
MEAN = (0.485, 0.456, 0.406)
RECIPE = 'rand-m9-mstd0.5-inc1'


@pytest.mark.parametrize('op', TIMM['names'])
@pytest.mark.parametrize(('mode', 'fill'), [('RGB', (124, 116, 104)), ('L', (114,))])
def test_pixels_are_timms(mode, fill, op):
    image = Image.fromarray(TIMM[f'{mode}/image'])
    cases = np.flatnonzero(TIMM[f'{mode}/op'] == op)
    assert len(cases)
    for case in cases:
        level, sign = TIMM[f'{mode}/level'][case], TIMM[f'{mode}/sign'][case]
        argument = randaugment.argument_of(op, float(level), int(sign), increasing=True)
        ours = randaugment.apply(image, op, argument, fill)
        assert (ours.mode, ours.size) == (image.mode, image.size)
        np.testing.assert_array_equal(np.asarray(ours), TIMM[f'{mode}/result'][case])


@pytest.mark.parametrize('increasing', [True, False])
def test_arguments_of_a_level_are_timms(increasing):
    ours = [
        [[randaugment.argument_of(op, level, s, increasing) for s in (1, -1)] for level in levels]
        for op, levels in ((op, TIMM['levels'].tolist()) for op in TIMM['names'])
    ]
    theirs = TIMM[f'arguments/inc{int(increasing)}']
    discrete = np.isin(TIMM['names'], ['Posterize', 'Solarize', 'SolarizeAdd'])
    np.testing.assert_array_equal(np.array(ours)[discrete], theirs[discrete])
    np.testing.assert_allclose(ours, theirs, rtol=1e-14)


def test_level_ten_of_posterize_keeps_no_bit():
    # Pillow's posterize, and so timm, refuses 0 bits, which one image in 660 draws.
    assert randaugment.argument_of('Posterize', 10, 1, increasing=True) == 0
    black = randaugment.apply(Image.new('RGB', (3, 3), (255, 200, 1)), 'Posterize', 0, (0, 0, 0))
    assert not np.asarray(black).any()


def test_what_is_drawn_is_distributed_as_in_timm():
    rng, augment = np.random.default_rng(0), parse_randaugment(RECIPE, MEAN)
    images = 15_000
    drawn = [augment.draw(rng) for _ in range(images)]

    counts = np.bincount([len(ops) for ops in drawn], minlength=3) / images
    np.testing.assert_allclose(counts, [0.25, 0.5, 0.25], atol=0.012)
    np.testing.assert_allclose(counts, TIMM['draws/applied_per_image'], atol=0.016)
    twice = np.mean([len(ops) == 2 and ops[0][0] == ops[1][0] for ops in drawn])
    assert abs(twice - TIMM['draws/same_twice']) < 0.004  # 1/60: with replacement

    values = collections.defaultdict(list)
    for op, argument in (pair for ops in drawn for pair in ops):
        values[op].append(argument)
    assert list(TIMM['names']) == list(randaugment.OPS)
    for op, share, quantiles in zip(
        TIMM['names'], TIMM['draws/op_share'], TIMM['draws/quantiles'], strict=True
    ):
        assert abs(len(values[op]) / images - share) < 0.008
        assert abs(len(values[op]) / images - 1 / 15) < 0.006
        ours = np.array(values[op])[:, None]
        # Within 3.5 standard errors; the two sides differ where many draws have the same value.
        assert ((ours <= quantiles + 1e-9).mean(0) > TIMM['quantiles'] - 0.055).all()
        assert ((ours < quantiles - 1e-9).mean(0) < TIMM['quantiles'] + 0.055).all()


def test_levels_are_normal_and_clipped_at_ten():
    rng = np.random.default_rng(1)
    augment = RandAugment((0, 0, 0), num_ops=20_000, probability=1)
    levels = np.array([abs(arg) / 3 for op, arg in augment.draw(rng) if op == 'Rotate'])
    assert levels.max() == pytest.approx(10)
    assert abs((levels > 9.9999).mean() - 0.0228) < 0.016  # P(N > 2)
    assert abs(np.median(levels) - 9) < 0.07
    assert abs((levels < 8.5).mean() - 0.1587) < 0.04  # P(N < -1)
    low = RandAugment((0, 0, 0), num_ops=1000, magnitude=0, probability=1, std=0.5)
    assert min(arg for op, arg in low.draw(rng) if op == 'SolarizeAdd') == 0


def test_drawn_operations_are_applied_in_order():
    image = Image.fromarray(TIMM['RGB/image'])
    augment = RandAugment((1, 2, 3), num_ops=3, probability=0.7)
    lengths = set()
    for seed in range(20):
        expected = image
        for op, argument in augment.draw(np.random.default_rng(seed)):
            expected = randaugment.apply(expected, op, argument, (1, 2, 3))
        ours = augment(image, np.random.default_rng(seed))
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(expected))
        lengths.add(len(augment.draw(np.random.default_rng(seed))))
    assert {1, 2, 3} <= lengths


def test_a_recipe_has_the_meaning_of_timm():
    fill = (124, 116, 104)
    np.testing.assert_array_equal(fill, TIMM['fill'])
    assert parse_randaugment(RECIPE, MEAN) == RandAugment(fill)
    assert parse_randaugment('rand', MEAN) == RandAugment(fill, 2, 10, 0.0, False, 0.5)
    other = parse_randaugment('rand-inc0-p1-n3-mstd2-m5', MEAN)
    assert other == RandAugment(fill, 3, 5, 2.0, False, 1.0)
    assert parse_randaugment('rand-m9', (0.449,)).fill == (114,)
    assert parse_randaugment('rand-m9', (-3.0, 114.4, 300.0), scale=1.0).fill == (0, 114, 255)


@pytest.mark.parametrize(
    ('spec', 'reason'),
    [
        ('augmix-m3', "policy 'augmix'"),
        ('', "policy ''"),
        ('rand-m9-mmax3', "'mmax3' is unknown"),
        ('rand-tweights', "'tweights' is unknown"),
        ('rand-m9-', "'' is unknown"),
        ('rand-m', "'m' is unknown"),
        ('rand-m9.5', "'9.5' in 'm9.5' is no int"),
        ('rand-mstd0.5.1', 'is no float'),
        ('rand-m11', "'m11' is not within 0 and 10"),
        ('rand-p2', "'p2' is not within"),
        ('rand-inc2', "'inc2' is not within"),
        ('rand-n0', "'n0' is not within"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_explained(spec, reason):
    with pytest.raises(UserError, match=rf"dataset\.augment='{spec}'.*{reason}.*{RECIPE}"):
        parse_randaugment(spec, MEAN)


def test_images_it_is_not_defined_for_are_refused():
    augment, rng = parse_randaugment(RECIPE, MEAN), np.random.default_rng(0)
    hint = r".*set dataset\.augment=''"
    for image, kind in (
        (np.zeros((4, 4, 3), np.uint16), 'uint16 with 3 bands'),
        (np.zeros((4, 4, 1), np.float32), 'float32 with 1 band'),
        (np.zeros((4, 4, 4), np.uint8), 'uint8 with 4 bands'),
        (Image.new('RGBA', (4, 4)), 'mode RGBA'),
        (Image.new('I;16', (4, 4)), 'mode I;16'),
    ):
        with pytest.raises(UserError, match='8-bit RGB and grey.*not for ' + kind + hint):
            augment(image, rng)
    with pytest.raises(UserError, match='not for 4 channels' + hint):
        parse_randaugment(RECIPE, (0.5,) * 4)


def test_it_can_be_pickled():
    augment = parse_randaugment(RECIPE, MEAN)
    assert pickle.loads(pickle.dumps(augment)) == augment
