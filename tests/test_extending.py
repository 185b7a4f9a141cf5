"""The examples of docs/extending.md, trained through `mae_jax.run` and through `main.py`."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers.commands import ROOT, make_tiny_config
from helpers.environment import xla_flags

import mae_jax
from mae_jax.config.model import make_encoder
from mae_jax.errors import UserError

pytestmark = pytest.mark.usefixtures('one_device')

PAGE = ROOT / 'docs/extending.md'
FIELDS = {
    'mask.strategy': 'my_mae:side',
    'target.name': 'my_mae:patch_mean',
    'dataset.name': 'my_mae:gratings',
    'loggers': ('tensorboard', 'my_mae:JsonLines'),
    'image_every_steps': 4,
}


@pytest.fixture(scope='module')
def module(tmp_path_factory):
    """A folder with the page's blocks as my_mae.py, on the Python path of this process."""
    folder = tmp_path_factory.mktemp('extending')
    blocks = re.findall(r'```python\n(.*?)```', PAGE.read_text(), re.DOTALL)
    (folder / 'my_mae.py').write_text('\n\n'.join(blocks))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop('my_mae', None)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_mask_a_target_a_source_and_a_logger_of_ones_own_train_from_python(module, tmp_path):
    config = make_tiny_config()
    config.update_from_flattened_dict(FIELDS)
    state = mae_jax.run(config, tmp_path / 'run')
    assert int(state.step) == 8
    assert state.params['decoder']['head']['kernel'].shape[-1] == 1  # one value a patch
    logged = [line for line in lines(tmp_path / 'run/mine.jsonl') if 'loss' in line]
    assert logged == [line for line in lines(tmp_path / 'run/metrics.jsonl') if 'loss' in line]
    assert (tmp_path / 'run/images/latest.png').exists()


def test_the_mask_hides_one_side(module):
    import jax
    from my_mae import side

    from mae_jax.pretext.masking import masking_from_noise

    noise = side(jax.random.key(0), 64, (4, 6), 12)
    mask = np.asarray(masking_from_noise(noise, 12).mask).reshape(64, 4, 6)
    assert (mask[:, :, :3].all((1, 2)) ^ mask[:, :, 3:].all((1, 2))).all()
    assert 0 < mask[:, 0, 0].mean() < 1


def test_a_task_of_ones_own_trains_resumes_and_keeps_its_best(module, tmp_path, capsys):
    config = make_tiny_config()
    config.update_from_flattened_dict({'task': 'my_mae:rotation', 'num_steps': 6})
    mae_jax.run(config, tmp_path / 'run')
    printed = capsys.readouterr().out
    assert re.search(r'best checkpoint: .*checkpoints/\d \(accuracy 0\.\d{4}\)', printed)
    evaluations = [x for x in lines(tmp_path / 'run/metrics.jsonl') if 'eval/accuracy' in x]
    assert [x['step'] for x in evaluations] == [4, 6]
    assert 0 < evaluations[-1]['eval/accuracy'] < 1
    state = mae_jax.run(config, tmp_path / 'run')
    assert 'resuming at step 6 of 6' in capsys.readouterr().out
    encoder, params = mae_jax.load_encoder(tmp_path / 'run')
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    model = make_encoder(config)
    expected = model.apply({'params': state.params['encoder']}, images)
    np.testing.assert_allclose(encoder.apply({'params': params}, images), expected, atol=1e-5)
    with pytest.raises(UserError, match='has no decoder'):
        mae_jax.load(tmp_path / 'run')


@pytest.mark.slow
def test_all_of_them_train_by_the_command(module, tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(
        'from configs import quickstart\n\n\ndef get_config():\n'
        '    config = quickstart.get_config()\n'
        "    config.task = 'my_mae:rotation'\n"
        "    config.dataset.name = 'my_mae:gratings'\n"
        "    config.loggers = ('my_mae:JsonLines',)\n"
        '    config.num_steps, config.log_every_steps = 2, 1\n'
        '    return config\n'
    )
    environment = os.environ | {
        'PYTHONPATH': f'{module}{os.pathsep}{ROOT}',
        'XLA_FLAGS': xla_flags(),
        'JAX_PLATFORMS': 'cpu',
    }
    process = subprocess.run(
        [sys.executable, 'main.py', f'--config={path}', f'--workdir={tmp_path / "run"}',
         '--config.mask.strategy=my_mae:side'],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert 'finished at step 2 of 2' in process.stdout
    assert [line['step'] for line in lines(tmp_path / 'run/mine.jsonl') if 'loss' in line] == [1, 2]
    assert not list(tmp_path.glob('run/events*'))


@pytest.mark.parametrize(
    ('field', 'value', 'message'),
    [
        ('task', 'pretrian', r"task='pretrian' is unknown: use pretrain \| classify"),
        ('task', 'no_module:task', r"task='no_module:task' cannot be imported"),
        ('loggers', ('wandbb',), r"loggers='wandbb' is unknown: use tensorboard"),
        ('mask.strategy', 'my_mae:nothing', r"my_mae has no function 'nothing'"),
    ],
)
def test_a_name_that_does_not_work_is_one_sentence(module, tmp_path, field, value, message):
    config = make_tiny_config()
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        mae_jax.run(config, tmp_path / 'run')
