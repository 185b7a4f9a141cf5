import json
import os
import signal
import subprocess
import sys

import ml_collections
import pytest
from helpers.disks import files_no_larger_than
from ml_collections.config_dict import placeholder

from configs import default
from mae_jax.config.saved import load_config
from mae_jax.errors import UserError
from mae_jax.experiment.workdir import check_config, check_shared, write_config
from mae_jax.files.lock import claim


def make_config(**fields):
    config = default.get_config()
    config.update_from_flattened_dict(fields)
    return config


def start(workdir, config, *, begun=True) -> list[str]:
    """Compares and keeps a config as a start of a run does, and returns what differs."""
    exists = (workdir / 'config.json').exists()
    changes = check_config(workdir, config) if begun and exists else []
    write_config(workdir, config)
    return changes


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path / 'run'`."""
    script = (
        'import sys\n'
        'from mae_jax.files.lock import claim\n'
        'with claim(sys.argv[1]):\n'
        '    print("held", flush=True)\n'
        '    sys.stdin.read()\n'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', script, tmp_path / 'run'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b'held\n'
    yield process
    process.kill()
    process.communicate()


def test_a_directory_that_another_process_holds_is_refused_with_its_number(holder, tmp_path):
    with pytest.raises(UserError, match=rf'held by .*process \({holder.pid}\).*another directory'):
        claim(tmp_path / 'run').__enter__()


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM])
def test_the_hold_ends_with_its_process_however_that_ends(holder, tmp_path, number):
    holder.send_signal(number)
    holder.wait()
    with claim(tmp_path / 'run'):
        pass


def test_a_directory_is_made_and_is_free_again_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), claim(tmp_path / 'deep' / 'run'):
        raise RuntimeError
    with claim(tmp_path / 'deep' / 'run'):
        pass


def test_a_path_that_cannot_be_a_directory_is_an_error(tmp_path):
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file', tmp_path / 'file' / 'run'):
        with pytest.raises(UserError, match='choose another directory'), claim(path):
            pass


def test_an_error_of_the_run_is_not_blamed_on_the_directory(tmp_path):
    with pytest.raises(FileNotFoundError), claim(tmp_path):
        open(tmp_path / 'missing')  # noqa: SIM115


def test_the_same_config_may_start_again_and_is_read_back_whole(tmp_path):
    config = make_config()
    assert start(tmp_path, config) == []
    before = (tmp_path / 'config.json').read_bytes()
    assert start(tmp_path, make_config()) == []
    assert (tmp_path / 'config.json').read_bytes() == before
    step = tmp_path / 'checkpoints' / '100'
    step.mkdir(parents=True)
    for path in (tmp_path, str(tmp_path), step):
        assert load_config(path).to_dict() == config.to_dict()
    assert isinstance(load_config(tmp_path).model, ml_collections.ConfigDict)


def test_not_a_number_as_the_value_of_missing_pixels_is_no_difference(tmp_path):
    for _ in range(2):
        assert start(tmp_path, make_config(**{'dataset.nodata': float('nan')})) == []


@pytest.mark.parametrize(
    'field, value',
    [
        ('task', 'classify'),
        ('seed', 1),
        ('batch_size', 8),
        ('num_epochs', 1.0),
        ('num_steps', 10),
        ('image_size', (96, 96)),
        ('init_from', 'elsewhere'),
        ('model.variant', 'vit_base'),
        ('model.depth', 3),
        ('model.dtype', 'float32'),
        ('mask.ratio', 0.5),
        ('target.name', 'pixel'),
        ('dataset.name', 'digits'),
        ('dataset.train_split', 'train[:1%]'),
        ('dataset.channels', 1),
        ('dataset.bands', (3, 2, 1)),
        ('dataset.nodata', 0.0),
        ('dataset.scale', 16.0),
        ('dataset.mean', (0.0, 0.0, 0.0)),
        ('dataset.std', (1.0, 1.0, 1.0)),
        ('dataset.crop_scale', (1.0, 1.0)),
        ('dataset.crop_ratio', (1.0, 1.0)),
        ('dataset.flip', False),
        ('dataset.apply_exif', True),
        ('dataset.on_error', 'skip'),
        ('dataset.synthetic_examples', 10),
        ('optimizer.base_lr', 1.0),
        ('optimizer.clip_norm', 1.0),
    ],
)
def test_what_makes_a_run_itself_may_not_change(tmp_path, field, value):
    start(tmp_path, make_config())
    before = (tmp_path / 'config.json').read_bytes()
    with pytest.raises(UserError) as message:
        start(tmp_path, make_config(**{field: value}))
    old = make_config()
    for name in field.split('.'):
        old = old[name]
    old = 'unset' if old is None else repr(old)
    assert f'{field} was {old}, now {value!r}' in str(message.value)
    assert '--workdir' in str(message.value)
    assert (tmp_path / 'config.json').read_bytes() == before


@pytest.mark.parametrize(
    'field, value',
    [
        ('model.remat', 'block'),
        ('model.scan', True),
        ('dataset.path', '/elsewhere'),
        ('dataset.threads', 2),
        ('dataset.workers', 2),
        ('dataset.prefetch', 4),
        ('dataset.timeout_s', 1.0),
        ('optimizer.accumulate', 2),
        ('mesh.fsdp', 8),
        ('log_every_steps', 1),
        ('eval_every_steps', 1),
        ('image_every_steps', 1),
        ('checkpoint_every_steps', 1),
        ('checkpoint_every_minutes', 5.0),
        ('keep_last', 1),
        ('keep_every_steps', 5),
        ('probe_at_end', True),
    ],
)
def test_how_a_run_is_computed_may_change_and_is_printed_once(tmp_path, field, value):
    start(tmp_path, make_config())
    (printed,) = start(tmp_path, make_config(**{field: value}))
    assert printed.startswith(f'{field} was ')
    assert printed.endswith(f', now {value!r}')
    assert start(tmp_path, make_config(**{field: value})) == []


def test_evaluating_a_run_is_no_difference(tmp_path):
    start(tmp_path, make_config())
    assert start(tmp_path, make_config(mode='eval')) == []


def test_every_difference_is_shown_at_once(tmp_path):
    start(tmp_path, make_config())
    with pytest.raises(UserError) as message:
        start(tmp_path, make_config(**{'seed': 7, 'model.width': 48, 'mesh.fsdp': 2}))
    assert 'seed was 0, now 7' in str(message.value)
    assert 'model.width was unset, now 48' in str(message.value)
    assert 'mesh.fsdp' not in str(message.value)


def test_a_field_that_an_older_run_did_not_have_is_shown_as_unset(tmp_path):
    config = make_config()
    start(tmp_path, config)
    config.unlock()
    config.model.register_tokens = 4
    with pytest.raises(UserError, match=r'model\.register_tokens was unset, now 4'):
        start(tmp_path, config)


def test_a_run_of_an_earlier_version_goes_on_and_may_not_take_up_what_is_new(tmp_path):
    config = make_config()
    for field in ('loss_on', 'components', 'sample', 'tokenizer', 'codes'):
        del config.target[field]
    del config.model['encoder_mask_tokens'], config.dataset['bands'], config.dataset['nodata']
    start(tmp_path, config)
    with pytest.raises(UserError, match=r"target\.loss_on was 'hidden', now 'all'"):
        start(tmp_path, make_config(**{'target.loss_on': 'all'}))
    assert start(tmp_path, make_config()) == []


def test_a_config_file_cut_short_is_an_error_that_names_it(tmp_path):
    start(tmp_path, make_config())
    path = tmp_path / 'config.json'
    path.write_bytes(path.read_bytes()[:100])
    for read in (lambda: load_config(tmp_path), lambda: start(tmp_path, make_config())):
        with pytest.raises(UserError, match=r'config\.json is damaged'):
            read()


def test_a_failed_write_leaves_the_old_config(tmp_path):
    start(tmp_path, make_config())
    before = (tmp_path / 'config.json').read_bytes()
    with files_no_larger_than(100), pytest.raises(UserError, match=r'config\.json.*make room'):
        start(tmp_path, make_config(log_every_steps=7))
    assert (tmp_path / 'config.json').read_bytes() == before


def test_a_directory_without_a_config_is_not_a_work_directory(tmp_path):
    with pytest.raises(UserError, match='no work directory'):
        load_config(tmp_path)


def test_unset_fields_are_null_and_stay_settable(tmp_path):
    config = ml_collections.ConfigDict({'depth': placeholder(int), 'size': (1, 2)})
    start(tmp_path, config)
    assert json.loads((tmp_path / 'config.json').read_text()) == {'depth': None, 'size': [1, 2]}
    loaded = load_config(tmp_path)
    assert (loaded.depth, loaded.size) == (None, (1, 2))
    loaded.depth = 3


def test_nothing_but_the_lock_and_the_config_is_left_in_the_directory(tmp_path):
    with claim(tmp_path):
        start(tmp_path, make_config())
    assert sorted(os.listdir(tmp_path)) == ['.lock', 'config.json']


def test_a_start_that_failed_before_its_first_checkpoint_binds_nobody(tmp_path):
    start(tmp_path, make_config(seed=1), begun=False)
    assert start(tmp_path, make_config(seed=2), begun=False) == []
    assert load_config(tmp_path).seed == 2


def test_a_process_that_does_not_see_what_another_wrote_says_where(tmp_path, monkeypatch):
    monkeypatch.setattr('mae_jax.experiment.workdir.SHARED_WITHIN_S', 0)
    with pytest.raises(UserError, match='written by process 0 and is not seen on .*share'):
        check_shared(tmp_path / 'local')
    start(tmp_path, make_config())
    check_shared(tmp_path)
