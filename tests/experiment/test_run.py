"""Runs as a whole, in this process: mistakes of configs, data and work directories."""

import json
import shutil

import jax
import numpy as np
import pytest
from helpers.commands import make_tiny_config
from helpers.tiny_runs import metrics, pretraining
from PIL import Image

from mae_jax.errors import Diverged, UserError
from mae_jax.experiment.inherit import inherit
from mae_jax.experiment.run import run

eight = pytest.mark.devices(8)


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.fixture(scope='module')
def finished(run_once):
    """The tiny config's run, finished: its directory, not to be written to, and its state."""
    return run_once('finished', make_tiny_config())[:2]


@pytest.fixture
def finished_copy(finished, tmp_path):
    return shutil.copytree(finished[0], tmp_path / 'run')


def test_a_path_in_the_home_directory_is_one_place(tiny_config, finished, tmp_path, monkeypatch):
    home, elsewhere = tmp_path / 'home', tmp_path / 'elsewhere'
    shutil.copytree(finished[0], home / 'run')
    (home / 'run' / 'model_card.md').unlink()
    elsewhere.mkdir()
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.chdir(elsewhere)
    run(tiny_config, '~/run')
    assert (home / 'run' / 'model_card.md').exists()
    tiny_config.init_from, tiny_config.dataset.path = '~/run', '~/data'
    config = inherit(tiny_config, '~/another')
    assert (config.init_from, config.dataset.path) == (f'{home}/run', f'{home}/data')
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        pytest.param('batch_size', 12, r'batch_size=12 .* 8 device.* multiple of 8', marks=eight),
        ('image_size', (9, 8), r'image_size=\(9, 8\) .* model\.patch_size'),
        ('mask.ratio', 1.0, r'mask\.ratio=1\.0'),
        ('mask.ratio', 0.99, r'mask\.ratio=0\.99 leaves none'),
        ('mask.ratio', 0.0, r'mask\.ratio=0\.0 hides none'),
        ('mask.strategy', 'stripes', r"mask\.strategy='stripes' is unknown"),
        ('target.name', 'edges', r"target\.name='edges' is unknown"),
        ('model.variant', 'vit_giant', r"model\.variant='vit_giant' is unknown"),
        ('model.heads', 5, r'model\.width=16 with model\.heads=5'),
        ('model.dtype', 'float16', r"model\.dtype='float16'"),
        ('model.remat', 'all', r"model\.remat='all'"),
        ('dataset.mean', (0.5, 0.5), r'dataset\.mean has 2'),
        ('dataset.on_error', 'ignore', r"dataset\.on_error='ignore'"),
        pytest.param('dataset.repeats', 4, r'dataset\.repeats=4 .* multiple of 32', marks=eight),
        ('dataset.resize', 'tpu', r"dataset\.resize='tpu'"),
        ('optimizer.name', 'sgd', r"optimizer\.name='sgd'"),
        ('optimizer.accumulate', 3, r'optimizer\.accumulate=3'),
        pytest.param('mesh.fsdp', 3, r'mesh\.fsdp=3 .* 8 devices', marks=eight),
        ('task', 'dream', r"task='dream'"),
        ('mode', 'test', r"mode='test'"),
        ('keep_last', 0, r'keep_last=0'),
        ('log_every_steps', 0, r'log_every_steps=0'),
        ('checkpoint_every_steps', 0, r'checkpoint_every_steps=0'),
        ('checkpoint_every_minutes', -1.0, r'checkpoint_every_minutes=-1\.0'),
        ('init_from', '/nowhere', r'/nowhere is neither a work directory'),
    ],
)
def test_a_field_that_cannot_work_is_named(tiny_config, tmp_path, field, value, message):
    tiny_config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        run(tiny_config, tmp_path / 'run')


def test_another_run_in_the_same_directory_is_refused_and_loses_nothing(tiny_config, finished_copy):
    saved = (finished_copy / 'metrics.jsonl').read_text()
    tiny_config.optimizer.base_lr = 9.5
    with pytest.raises(UserError, match=r'optimizer\.base_lr was 0\.008, now 9\.5.*--workdir'):
        run(tiny_config, finished_copy)
    assert (finished_copy / 'metrics.jsonl').read_text() == saved


@eight
def test_remat_and_devices_may_change_within_a_run(tiny_config, finished_copy, capsys):
    with tiny_config.unlocked():
        tiny_config.mesh.fsdp = 4
        tiny_config.model.remat = 'block'
    run(tiny_config, finished_copy)
    assert "model.remat was 'none', now 'block'" in capsys.readouterr().out


@pytest.mark.slow
def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(tiny_config, tmp_path):
    tiny_config.num_steps = 200
    tiny_config.optimizer.base_lr = 1e30
    tiny_config.optimizer.warmup_epochs = 0.05  # a few steps before it blows up
    with pytest.raises(Diverged, match=r'at step \d+: the run has stopped'):
        run(tiny_config, tmp_path)
    steps = [int(path.name) for path in (tmp_path / 'checkpoints').iterdir()]
    assert steps
    lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    assert all(np.isfinite(json.loads(line).get('loss', 0)) for line in lines)


@pytest.mark.slow
def test_init_from_takes_the_weights_and_nothing_else(tiny_config, tmp_path, finished):
    tiny_config.init_from, first = str(finished[0]), finished[1]
    tiny_config.optimizer.warmup_epochs = 100.0  # so slow that nothing moves in one step
    tiny_config.num_steps = 1
    second = run(tiny_config, tmp_path / 'second')
    for a, b in zip(leaves(first.params), leaves(second.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert int(second.step) == 1
    tiny_config.model.width = 32
    with pytest.raises(UserError, match=r'holds another model .*16.* there, .*32.* here'):
        run(tiny_config, tmp_path / 'third')


@pytest.mark.slow
def test_the_newest_damaged_checkpoint_is_passed_over(
    tiny_config, finished, finished_copy, capsys, caplog
):
    damaged = max(
        (finished_copy / 'checkpoints' / '8').rglob('d/*'), key=lambda p: p.stat().st_size
    )
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 16
    damaged.write_bytes(content)
    again = run(tiny_config, finished_copy)
    message = capsys.readouterr().out + caplog.text
    assert 'step 8' in message and 'damaged' in message and 'resuming at step 6' in message
    for a, b in zip(leaves(finished[1].params), leaves(again.params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_an_unlabelled_folder_is_trained_on_and_must_stay_as_it_is(tiny_config, tmp_path):
    make_images(tmp_path / 'images', 20)
    use_folder(tiny_config, tmp_path / 'images')
    state = run(tiny_config, tmp_path / 'run')
    assert int(state.step) == 8
    make_images(tmp_path / 'images', 30)
    with pytest.raises(UserError, match='other data .*dataset was'):
        run(tiny_config, tmp_path / 'run')


@pytest.mark.slow
def test_an_unreadable_image_is_named_or_skipped_and_counted(tiny_config, tmp_path):
    make_images(tmp_path / 'images', 40)
    for path in sorted((tmp_path / 'images').iterdir())[10:12]:
        path.write_bytes(path.read_bytes()[:100])
    use_folder(tiny_config, tmp_path / 'images')
    with pytest.raises(UserError, match=r"\d+\.jpg.*dataset\.on_error='skip'"):
        run(tiny_config, tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run')
    tiny_config.dataset.on_error = 'skip'
    run(tiny_config, tmp_path / 'run')
    lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
    assert max(json.loads(line).get('replaced_images', 0) for line in lines) >= 2


def use_folder(config, path):
    config.dataset.name = 'folder'
    config.dataset.path = str(path)
    config.dataset.channels = 3
    config.dataset.mean = config.dataset.std = (0.5, 0.5, 0.5)


def make_images(folder, count):
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f'{number}.jpg')


@pytest.mark.slow
@pytest.mark.parametrize('repeats', [1, 2])
def test_a_run_that_resizes_on_the_devices_learns_what_one_does_that_resizes_on_the_host(
    tmp_path, repeats
):
    quick = {'num_steps': 4, 'log_every_steps': 1, 'eval_every_steps': 0, 'image_every_steps': 0}
    losses = []
    for resize in ('host', 'device'):
        fields = {'dataset.resize': resize, 'dataset.repeats': repeats, 'dataset.canvas': 8}
        run(pretraining(**quick, **fields), tmp_path / resize)
        losses.append([line['loss'] for line in metrics(tmp_path / resize)])
    assert len(losses[0]) == 4
    np.testing.assert_allclose(*losses, rtol=2e-3)  # some pixels are rounded the other way
