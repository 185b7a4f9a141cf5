"""What users mistype: each mistake is one sentence, which names what was probably meant."""

import gc
import os

import pytest
from PIL import Image

from mae_jax.cli.main import main

TRAIN = ('train', 'quickstart')
PLAN = ('plan', 'vit_huge', '--devices=8')
ABLATE = ('ablate', '--out=out')
DIGITS = ('train', 'finetune_digits')

FILES = [
    (('train', 'vit_lrge'), "vit_lrge: there is no such recipe: did you mean 'vit_large'?"),
    (('train', '--config=configs/vit_lrge.py'), "no such Python file: did you mean 'vit_large'?"),
    (('train', 'my/confg.py'), "did you mean 'my/config.py'?"),
    (('train', '../nowhere/at/all.py'), 'choose ablations, default'),
    (('plan', 'vit_hug', '--devices=8'), "did you mean 'vit_huge'?"),
    ((*ABLATE, '--suite=ablation_siute'), "did you mean 'ablation_suite'?"),
    ((*ABLATE, '--suite=ablation_suite:smal'), 'choose table, mask_ratio, length, small'),
    (('train', 'ablations:mask_blok_50'), 'ablations.py:mask_blok_50 is unknown: choose'),
    (('train', 'ablation_suite'), 'ablation_suite has no get_config'),
    (('train', 'vit_large:8'), "vit_large takes no argument ('8')"),
    (
        ('train', 'my/broken.py'),
        "cannot be loaded (ModuleNotFoundError: No module named 'nix')",
    ),
    (('train',), 'no config: name one, such as quickstart'),
    ((*TRAIN, '--config=vit_large'), 'two configs, quickstart and vit_large: name one'),
]
FIELDS = [
    ((*TRAIN, '--config.modle.width=3'), "'modle.width': did you mean 'model.width'?"),
    ((*TRAIN, '--config.model.widht=3'), "did you mean 'model.width'?"),
    ((*TRAIN, '--config.widht', '3'), "did you mean 'model.width'?"),
    ((*TRAIN, '--config.batchsize=3'), "did you mean 'batch_size'?"),
    ((*TRAIN, '--config.zzz=3'), "no config field 'zzz' (mae-jax fields lists them)."),
    ((*TRAIN, '--config.model=3'), 'model is a group of fields: set one of them, such as model.'),
    ((*PLAN, '--config.mesh.fspd=2'), "did you mean 'mesh.fsdp'?"),
    ((*PLAN, '--set', 'mesh.fspd=2'), "did you mean 'mesh.fsdp'?"),
    ((*PLAN, '--set', 'mesh.fsdp'), '--set mesh.fsdp has no value: give --config.mesh.fsdp=VALUE.'),
    ((*ABLATE, '--config.finetune.num_epoch=3'), "did you mean 'num_epochs'?"),
    ((*ABLATE, '--rows', 'target_pixl'), "no row 'target_pixl': did you mean 'target_pixel'?"),
    (('fields', 'optimzer'), "did you mean 'optimizer'?"),
]
VALUES = [
    ((*TRAIN, '--config.batch_size=many'), 'batch_size=many does not work: the value must be a wh'),
    ((*TRAIN, '--config.batch_size='), 'batch_size= does not work: the value must be a whole'),
    ((*TRAIN, '--config.batch_size=None'), 'batch_size=None does not work'),
    ((*TRAIN, '--config.optimizer.base_lr=1e-3x'), 'the value must be a number'),
    ((*TRAIN, '--config.dataset.flip=perhaps'), 'the value must be True or False'),
    ((*TRAIN, '--config.image_size=64x96'), 'must be whole numbers, such as 96 or (64,96)'),
    ((*TRAIN, '--config.image_size=64px'), 'must be whole numbers, such as 96 or (64,96)'),
    ((*TRAIN, '--config.image_size=64.0'), 'must be whole numbers, such as 96 or (64,96)'),
    ((*DIGITS, '--config.dataset.mean=dark'), 'must be a number or several'),
    ((*TRAIN, '--config.loggers=(1,2)'), 'must be a list of names, such as a,b'),
    (('plan', 'vit_huge', '--devices=many'), "argument --devices: invalid int value: 'many'"),
    ((*PLAN, '--chip', 'h10'), "'h10'"),
    (('visualize', 'm', 'a.png', '--show=atention'), "invalid choice: 'atention'"),
]
COMMANDS = [
    (('trian', 'quickstart'), "'trian' is not a command of mae-jax: did you mean 'train'?"),
    (('vizualise',), "did you mean 'visualize'?"),
    (('--verison',), "'--verison' is not a command"),
]
FLAGS = [
    ((*TRAIN, '--work_dir=x'), "'--work_dir=x' is not an argument of mae-jax train: did you mean"),
    ((*TRAIN, '--batch_size=3'), 'fields are given as --config.batch_size=64'),
    ((*TRAIN, 'vit_large'), "'vit_large' is not an argument of mae-jax train"),
    ((*PLAN, '--mfa=1'), "did you mean '--mfu'?"),
    (('plan', 'vit_huge'), 'the following arguments are required: --devices'),
    (('visualize', 'm', 'a.png', '--mask-ratio=.5'), "did you mean '--mask_ratio'?"),
    (('convert', 'a', 'b', '--overwirte'), "did you mean '--overwrite'?"),
    (('robustness', 'm', '--images=many'), "argument --images: invalid int value: 'many'"),
    (('robustness', 'm', '--clases=x'), "did you mean '--classes'?"),
    (('prepare', 'a', 'b', '--shortside=3'), "did you mean '--short_side'?"),
    (('prepare', 'a', 'b', '--config.batch_size=3'), 'mae-jax prepare has no config: leave out'),
]
PATHS = [
    ((*DIGITS, '--config.init_from=runs/quikstart'), "runs/quickstart'?"),
    (('train', 'folder', '--config.dataset.path=photoz/cats'), "did you mean 'photos/cats'?"),
    (('convert', 'modle.safetensors', 'b.pth'), "model.safetensors'?"),
    (('visualize', 'runs/quikstart', 'a.png'), "runs/quickstart'?"),
    (('robustness', 'runs/quikstart'), "runs/quickstart'?"),
    (('robustness', 'm', '--kind=imagenet_d'), 'robustness.py:imagenet_d is unknown: choose imag'),
    (('visualize', 'nothing/like/it', 'a.png'), 'neither a work directory'),
]


@pytest.fixture
def attempt(tmp_path, monkeypatch, capsys):
    """Runs a command in a directory with a config, photographs and a run: status, out, error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('sys.unraisablehook', None)  # set by the command
    monkeypatch.setattr('mae_jax.runtime.compilation_cache.keep_compiled', lambda workdir: None)
    for folder in ('my', 'photos/cats', 'runs/quickstart/checkpoints'):
        os.makedirs(folder)
    for name, text in (('config', ''), ('broken', 'import nix')):
        (tmp_path / f'my/{name}.py').write_text(text)
    (tmp_path / 'model.safetensors').touch()
    Image.new('RGB', (8, 8)).save('a.png')

    gc.collect()  # what other tests have left may print as it goes
    capsys.readouterr()

    def run(*arguments):
        return main(arguments), *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [*FILES, *FIELDS, *VALUES, *COMMANDS, *FLAGS, *PATHS],
    ids=lambda value: ' '.join(value) if isinstance(value, tuple) else '',
)
def test_a_mistake_is_one_sentence(attempt, arguments, message):
    status, output, error = attempt(*arguments)
    assert status == 1
    assert error.startswith('error: ') and error.count('\n') == 1 and error[-2] in '.?)', error
    assert message in error
    assert output.count('\n') <= (arguments[0] in ('train', 'robustness')), (
        output
    )  # which run it was
