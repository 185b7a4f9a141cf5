"""Erasing, soft targets and mixing against timm (numbers of tests/golden/make_augment.py)."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import ROOT

from mae_jax.errors import UserError
from mae_jax.tasks import augment
from mae_jax.tasks.augment import Box, Mix
from mae_jax.training import sharding as mesh_lib

SIZE = (24, 20)
DRAWS = 20_000
ERASING = {'probability': 1.0, 'min_area': 0.02, 'max_area': 1 / 3, 'min_aspect': 0.3}
draw_erasing = jax.jit(augment.draw_erasing, static_argnames=('rows', 'size', 'min_aspect'))
MIXING = {'mixup': 0.8, 'cutmix': 1.0, 'switch_probability': 0.5}
draw_mix = jax.jit(augment.draw_mix, static_argnames=('groups', 'size', *MIXING))
erase = jax.jit(augment.erase, static_argnames='probability')


@pytest.fixture(scope='module')
def golden():
    with np.load(ROOT / 'tests/golden' / 'augment.npz') as file:
        return dict(file)


def make_images(rows: int, size: tuple[int, int] = (12, 10), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, *size, 3)).astype(np.float32)


def make_box(edges: np.ndarray) -> Box:
    return Box(*jnp.asarray(edges.T, jnp.int32))


def histograms(box: Box) -> dict[str, np.ndarray]:
    """Counts of each value of edges, height, width and area, over the boxes that are not empty."""
    drawn = np.asarray(box.area) > 0
    top, bottom, left, right = (np.asarray(edge)[drawn] for edge in box)
    height, width = bottom - top, right - left
    counted = {'top': top, 'bottom': bottom, 'left': left, 'right': right}
    counted |= {'height': height, 'width': width, 'area': height * width}
    return {name: np.bincount(values, minlength=1) for name, values in counted.items()}


def assert_same_distribution(ours: np.ndarray, theirs: np.ndarray, name: str) -> None:
    """Two-sample Kolmogorov-Smirnov test of histograms; one pair in about 1500 would exceed it."""
    width = max(len(ours), len(theirs))
    ours, theirs = (np.pad(counts, (0, width - len(counts))) for counts in (ours, theirs))
    distance = np.abs(np.cumsum(ours) / ours.sum() - np.cumsum(theirs) / theirs.sum()).max()
    assert distance < 2 * np.sqrt(1 / ours.sum() + 1 / theirs.sum()), name


def assert_same_share(ours: int, theirs: int) -> None:
    """Of DRAWS each, within 3.3 standard deviations of the difference."""
    p = (ours + theirs) / (2 * DRAWS)
    assert abs(ours - theirs) <= 3.3 * np.sqrt(2 * DRAWS * p * (1 - p))


# --- erasing


def test_pixels_inside_the_box_are_the_noise_and_all_others_stay(golden):
    images, expected = golden['erase/input'], golden['erase/images']
    box = make_box(golden['erase/box'])
    erased = images != expected
    noise = np.where(erased, expected, 1e6)  # what lies outside the box is not looked at
    np.testing.assert_array_equal(jax.jit(augment.fill)(images, box, noise), expected)
    assert 0 < erased.any(axis=(1, 2, 3)).sum() < len(images)


@pytest.mark.parametrize(
    ('name', 'changed'),
    [
        ('erasing_always', {}),
        ('erasing_quarter', {'probability': 0.25}),
        ('erasing_tight', {'min_area': 0.8, 'max_area': 0.95}),  # most attempts do not fit
    ],
)
def test_erased_boxes_are_distributed_as_timms(golden, name, changed):
    box = draw_erasing(jax.random.key(0), rows=DRAWS, size=SIZE, **ERASING | changed)
    ours = histograms(box)
    assert_same_share(ours['area'].sum(), golden[f'{name}/area'].sum())
    for part, counts in ours.items():
        assert_same_distribution(counts, golden[f'{name}/{part}'], part)


def test_an_image_into_which_no_box_fits_is_left_alone():
    changed = {'min_area': 0.98, 'max_area': 1.0}
    box = draw_erasing(jax.random.key(0), rows=DRAWS, size=SIZE, **ERASING | changed)
    assert not np.any(box.area)


def test_noise_is_standard_normal_and_each_pixel_channel_and_image_has_its_own():
    images = np.full((200, *SIZE, 3), 7, np.float32)
    erased = np.asarray(erase(images, jax.random.key(0), probability=1))
    inside = (erased != 7).any(axis=-1)
    assert len({mask.tobytes() for mask in inside}) > 190
    noise = erased[inside]
    assert noise.shape[0] > 10_000
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(noise.std(axis=0), 1, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(noise.T), np.eye(3), atol=0.03)
    assert len(np.unique(noise)) > 0.98 * noise.size
    fewer = erase(images[:5], jax.random.key(0), probability=1)
    np.testing.assert_array_equal(fewer, erased[:5])  # an image's draw is that of its row


def test_probability_zero_erases_nothing_and_other_than_a_probability_is_refused():
    images = make_images(4)
    np.testing.assert_array_equal(augment.erase(images, jax.random.key(0), probability=0), images)
    for probability in (-0.1, 1.5, float('nan')):
        with pytest.raises(UserError, match='probability of erasing'):
            augment.erase(images, jax.random.key(0), probability=probability)


# --- targets


def test_smoothing_is_spread_over_all_classes():
    targets = augment.soft_targets(jnp.array([2, 0]), 4, 0.1)
    np.testing.assert_allclose(
        targets, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]], rtol=1e-6
    )
    assert targets.dtype == np.float32
    np.testing.assert_array_equal(augment.soft_targets(jnp.array([1]), 3, 0.0), [[0, 1, 0]])


# --- mixing


def test_mixed_images_and_targets_are_timms_for_the_same_parameters(golden):
    box, lam = golden['mix/box'], golden['mix/lam']
    assert {'mixup', 'cutmix'} == {'cutmix' if edges.any() else 'mixup' for edges in box}
    targets = augment.soft_targets(golden['mix/labels'], 7, 0.1)
    mix = jax.jit(partial(augment.apply_mix, group=8))
    images, targets = mix(golden['mix/input'], targets, Mix(lam, make_box(box)))
    np.testing.assert_allclose(images, golden['mix/images'], atol=1e-6)
    np.testing.assert_allclose(targets, golden['mix/targets'], atol=1e-6)


def test_cutmix_boxes_are_timms_for_the_same_lambda_and_centre(golden):
    row, column = golden['cutmix_boxes/center'].T
    box = augment.cutmix_box(golden['cutmix_boxes/drawn'], row, column, (224, 160))
    np.testing.assert_array_equal(np.stack(box, axis=1), golden['cutmix_boxes/box'])


@pytest.mark.parametrize(
    ('name', 'changed'),
    [('mix_both', {}), ('mix_mixup', {'cutmix': 0.0}), ('mix_cutmix', {'mixup': 0.0})],
)
def test_mixing_parameters_are_distributed_as_timms(golden, name, changed):
    drawn = draw_mix(jax.random.key(0), DRAWS, SIZE, **MIXING | changed)
    lam, is_cutmix = np.asarray(drawn.lam), np.asarray(drawn.box.area) > 0
    is_mixup = ~is_cutmix & (lam < 1)  # not a box of CutMix too small to cut anything
    kinds = {'mixup_lam': lam[is_mixup], 'cutmix_lam': lam[is_cutmix]}
    for kind, values in kinds.items():
        theirs = golden[f'{name}/{kind}']
        assert (len(values) == 0) == (theirs.sum() == 0)
        assert_same_share(len(values), theirs.sum())
        if len(values):
            assert_same_distribution(np.histogram(values, len(theirs), (0, 1))[0], theirs, kind)
    if is_cutmix.any():
        for part, counts in histograms(drawn.box).items():
            assert_same_distribution(counts, golden[f'{name}/{part}'], part)


def test_32_rows_share_a_draw_and_a_smaller_last_group_is_mirrored_within_itself():
    rows = 32 + 32 + 32 + 5
    images = make_images(rows)
    targets = np.eye(rows, dtype=np.float32)  # shows who was mixed with whom, and by how much
    mixed, mixed_targets = map(
        np.asarray, jax.jit(partial(augment.mix, **MIXING))(images, targets, jax.random.key(2))
    )
    shares, kinds = set(), set()
    for start in range(0, rows, 32):
        group = np.arange(start, min(start + 32, rows))
        own, other = images[group], images[group[::-1]]
        lam = mixed_targets[start, start]
        expected = lam * targets[group] + (1 - lam) * targets[group[::-1]]
        np.testing.assert_allclose(mixed_targets[group], expected, atol=1e-6)
        kept = (mixed[group] == own).all(axis=-1)
        if kept[0].any():
            swapped = (mixed[group] == other).all(axis=-1)
            assert (kept[0] == kept[1]).all() and (kept | swapped).all()
            np.testing.assert_allclose(kept[0].mean(), lam, atol=1e-6)
        else:
            np.testing.assert_allclose(mixed[group], lam * own + (1 - lam) * other, atol=1e-6)
        shares.add(lam)
        kinds.add(kept[0].any())
    assert len(shares) == 4 and min(shares) > 0 and max(shares) < 1
    assert kinds == {True, False}


def test_with_both_alphas_zero_nothing_is_mixed():
    images, targets = make_images(4), np.eye(4, dtype=np.float32)
    off = {'mixup': 0.0, 'cutmix': 0.0, 'switch_probability': 0.5}
    same = augment.mix(images, targets, jax.random.key(0), **off)
    assert same[0] is images and same[1] is targets


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'mixup': -0.8}, r'mixup=-0\.8'),
        ({'cutmix': float('nan')}, 'cutmix=nan'),
        ({'switch_probability': 1.1}, 'probability of CutMix over mixup, 1.1'),
    ],
)
def test_impossible_parameters_are_refused(changed, message):
    with pytest.raises(UserError, match=message):
        augment.mix(make_images(4), np.eye(4), jax.random.key(0), **MIXING | changed)


# --- the whole, as a step runs it


def augmented(images, targets, key):
    erase_key, mix_key = jax.random.split(key)
    images = augment.erase(images, erase_key, probability=0.5)
    return augment.mix(images, targets, mix_key, **MIXING, group=4)


def split_over_devices(function, batch, drawn):
    """`function(*batch, drawn)`, rows split over eight devices, and how these communicated."""
    sharding = mesh_lib.batch_sharding(mesh_lib.make_mesh(2))
    batch = jax.device_put(batch, sharding)
    compiled = jax.jit(function, out_shardings=sharding).lower(*batch, drawn).compile()
    collectives = r'all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter'
    return compiled(*batch, drawn), set(re.findall(collectives, compiled.as_text()))


@pytest.mark.slow
def test_the_key_decides_the_batch_and_its_split_over_devices_does_not():
    batch = make_images(64), np.eye(64, dtype=np.float32)
    run = jax.jit(augmented)
    first, again, other = (run(*batch, jax.random.key(seed)) for seed in (0, 0, 1))
    split, communicated = split_over_devices(augmented, batch, jax.random.key(0))
    for a, b, c, d in zip(first, again, other, split, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (np.asarray(a) != c).any()
        np.testing.assert_array_equal(a, d)
    assert not communicated  # each device holds two whole groups


def test_groups_split_between_devices_are_mixed_by_exchanging_rows():
    batch = make_images(64), np.eye(64, dtype=np.float32)
    boxes = np.array([[0, 0, 0, 0], [2, 9, 0, 5], [0, 0, 0, 0], [3, 4, 5, 9]])
    drawn = Mix(jnp.array([0.3, 0.7, 0.6, 0.9]), make_box(boxes))
    mix = partial(augment.apply_mix, group=16)
    split, communicated = split_over_devices(mix, batch, drawn)
    for a, b in zip(split, jax.jit(mix)(*batch, drawn), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)  # a multiply-add may round otherwise
    assert communicated == {'collective-permute'}  # no device gathers the batch
