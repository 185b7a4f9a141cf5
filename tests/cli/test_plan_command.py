"""`mae-jax plan`, as a user starts it."""

import os
import subprocess
import sys

import pytest
from helpers.commands import ROOT

from mae_jax.cli import plan
from mae_jax.cli.main import parse_arguments
from mae_jax.errors import UserError

SMALL = ('model.width=64', 'model.depth=1', 'model.decoder_width=64', 'model.decoder_depth=1')


@pytest.fixture
def printed(monkeypatch, capsys):
    """Runs the command in the directory that holds configs/, and returns its output."""
    monkeypatch.chdir(ROOT)

    def run(*arguments: str) -> str:
        plan.run(parse_arguments(['plan', *arguments]))
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_chips_are_rows_and_what_does_not_fit_is_warned_of(printed):
    text = printed(
        *('--config=configs/vit_base.py', '--devices=8', '--mfu=0.5', '--examples=128116'),
        *('--chip', 'v5e', 'H200', '--set', *SMALL, 'model.heads=4', 'num_epochs=400'),
    )
    assert '12,511 steps, 400.0 epochs of 128,116 images' in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert rows['v5e'][1:3] == ['16', 'yes'] and rows['h200'][1:3] == ['141', 'yes']
    seconds = [float(rows[chip][3]) for chip in ('v5e', 'h200')]
    assert seconds[0] / seconds[1] == pytest.approx(989 / 197, rel=1e-3)
    assert 'warning' not in text and 'at 50% of the peak' in text
    many = printed(
        *('--config=configs/vit_base.py', '--devices=8', '--chip', 'v5e', '--set'),
        *(*SMALL, 'model.heads=4', 'batch_size=65536'),
    )
    warning = many.splitlines()[-1]
    assert warning.startswith('warning: v5e has 16 GiB') and 'optimizer.accumulate=' in warning
    assert 'NO' in many and 'model.remat=block' in warning
    assert "ImageNet's number" in many  # which is not on this machine


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--config=configs/none.py',), '--config=configs/none.py: there is no such'),
        (('--config=configs/ablation_suite.py',), 'has no get_config'),
        (('--config=configs/ablations.py:nothing',), 'nothing'),
        (('--config=configs/vit_huge.py', '--chip', 'v99'), "'v99'"),
        (('--config=configs/vit_huge.py', '--mfu=40'), '--mfu 40.0'),
        (('--config=configs/vit_huge.py', '--set', 'modle.width=3'), "'modle.width'"),
        (('--config=configs/vit_huge.py', '--set', 'mesh.fsdp=two'), 'mesh.fsdp=two does not work'),
        (('--config=configs/vit_huge.py', '--set', 'mesh.fsdp=3'), 'mesh.fsdp=3 does not divide'),
        (('--config=configs/finetune.py',), 'model.variant'),
    ],
)
def test_a_mistake_is_one_sentence(printed, arguments, message):
    with pytest.raises(UserError) as error:
        printed(*arguments, '--devices=8', '--examples=1000')
    assert message in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--compile',), '--compile takes one chip and its topology'),
        (('--compile', '--chip', 'v5e'), '--compile takes one chip and its topology'),
        (('--compile', '--chip', 'v5e', 'v4', '--topology=2x2'), '--compile takes one chip'),
        (('--compile', '--chip', 'v5e', '--topology=2x2', '--devices=4'), 'and no --devices'),
        (('--topology=2x2', '--devices=4'), '--topology works with --compile alone'),
        (('--compile', '--chip', 'l4', '--topology=1x8'), '--compile does not know l4'),
        (('--compile', '--chip', 'h100', '--topology=8'), 'give hosts x GPUs of a host'),
    ],
)
def test_what_does_not_go_with_compiling_is_one_sentence(printed, arguments, message):
    with pytest.raises(UserError) as error:
        printed('--config=configs/vit_huge.py', '--examples=1000', *arguments)
    assert message in str(error.value) and '\n' not in str(error.value)


@pytest.mark.slow
def test_a_step_is_compiled_for_tpus_that_are_not_there():
    pytest.importorskip('libtpu')
    arguments = ('--compile', '--chip', 'v5e', '--topology', '2x2', '--examples=1000')
    sizes = (*SMALL, 'model.heads=4', 'model.dtype=bfloat16', 'batch_size=8', 'num_steps=9')
    done = subprocess.run(
        [sys.executable, '-m', 'mae_jax', 'plan', 'vit_base', *arguments, '--set', *sizes],
        cwd=ROOT,
        env=os.environ | {'XLA_FLAGS': '', 'JAX_PLATFORMS': ''},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr == 'compiling, which takes a few minutes ...\n'
    )  # libtpu's lines are not shown
    assert 'compiled for v5e:2x2' in done.stdout and 'once a step' in done.stdout
    assert 'MFU' in done.stdout and max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.slow
def test_vit_huge_is_planned_without_an_accelerator():
    done = subprocess.run(
        [sys.executable, '-m', 'mae_jax', 'plan', '--config=configs/vit_huge.py', '--devices=256'],
        cwd=ROOT,
        env=os.environ | {'XLA_FLAGS': '', 'JAX_PLATFORMS': ''},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, '')
    assert '657,074,508' in done.stdout and '250,227 steps' in done.stdout
