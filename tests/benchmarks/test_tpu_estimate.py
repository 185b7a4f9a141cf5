"""The table of estimates: whose step is compiled, what a program costs, how it is written down."""

import argparse
from types import SimpleNamespace

import pytest
import tpu_estimate as lib

from mae_jax.planning.bundles import Cycles
from mae_jax.runtime.chips import named_chip

V5E = named_chip('v5e')
TEXT = """\
HloModule jit_step

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %mlp = f32[8]{0} fusion(%p), metadata={op_name="jit(step)/transpose(jvp(Net))/model/layer_7/ff/w1/dot_general"}, \
backend_config={"estimated_cycles":"200000000"}
  %kernel = f32[8]{0} custom-call(%p), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(step)/jvp(Net)/model/layer_7/attn/pallas_call"}
  ROOT %update = f32[8]{0} fusion(%p), metadata={op_name="jit(step)/optimizer/add"}, \
backend_config={"estimated_cycles":"50000000"}
}
"""  # noqa: E501
RESULT = {
    'text': TEXT,
    'scopes': {'model': 'encoder', r'ff|feed_\w+': 'mlp', 'attn': 'attention'},
    'flops': 0.1 * 197e12,
    'temporary': 3 * 2**29,
}


def test_the_scopes_of_a_peer_become_ours(monkeypatch):
    monkeypatch.setattr(lib, 'count_kernel_cycles', lambda *_: {'kernel': Cycles(50_000_000, 0)})
    found = lib.estimate(RESULT, V5E, '2x2')
    assert found.cycles == {
        ('encoder', 'MLP'): 200_000_000,
        ('encoder', 'attention: all else'): 50_000_000,
        ('', 'optimiser'): 50_000_000,
    }
    assert (found.total, found.kernels, found.missing) == (300_000_000, 50_000_000, 0)


def test_only_whole_scopes_of_names_are_renamed():
    text = 'model op_name="jvp(model)/model_2/model" model'
    assert lib.rename_scopes(text, {'model': 'x'}) == 'model op_name="jvp(x)/model_2/x" model'


def test_a_table_has_speed_mfu_and_memory_and_empty_cells_for_what_is_missing(monkeypatch):
    monkeypatch.setattr(lib, 'count_kernel_cycles', lambda *_: {})
    table = dict((row[0], row[1:]) for row in lib.rows(
        [lib.estimate(RESULT, V5E, '2x2'), None], V5E, images=64
    ))  # fmt: skip
    assert table['encoder: MLP'] == ['200.00', '']
    assert table['**in all, M cycles**'] == ['**250.00**', '']
    assert table['calls of kernels that are not in it'] == ['1', '']
    assert table['images/s a chip'] == ['384', '']  # 64 in 250 M cycles of 1.5 GHz
    assert table['MFU'] == ['60.0%', '']
    assert table['temporary memory, GiB'] == ['1.50', '']


def test_contenders_are_the_version_before_this_one_and_peers(tmp_path):
    args = argparse.Namespace(
        before=str(tmp_path), ours=['now=', 'plain=model.attention=plain,model.remat=block'],
        peer=['KAIST=peers/kaist.py:pretrain@/path', 'mine=mine.py:step'],
    )  # fmt: skip
    before, now, plain, kaist, mine = lib.contenders(args)
    assert before == lib.Contender('before', str(tmp_path.resolve()))
    assert now == lib.Contender('now')
    assert plain.overrides == ('model.attention=plain', 'model.remat=block')
    assert (kaist.path, kaist.peer) == ('/path', 'peers/kaist.py:pretrain')
    assert (mine.path, mine.peer) == ('', 'mine.py:step')


def test_a_contender_that_fails_is_reported_and_left_out(monkeypatch, capsys):
    failed = SimpleNamespace(
        returncode=1, stderr='Traceback\nNotImplementedError: no such model\nE0000 x'
    )
    monkeypatch.setattr(lib.subprocess, 'run', lambda *_, **__: failed)
    contender = lib.Contender('peer', peer='peer.py:step')
    assert lib.compile_contender(contender, 'finetune_base', 32, V5E, '2x2') is None
    assert 'peer, finetune_base: NotImplementedError: no such model' in capsys.readouterr().err


PEER = """
import jax, jax.numpy as jnp
SCOPES = {'net': 'encoder', 'dense': 'mlp'}

def make(config):
    def step(state, batch):
        def loss(w):
            with jax.named_scope('net'), jax.named_scope('dense'):
                return ((batch @ w) ** 2).mean()
        value, gradient = jax.value_and_grad(loss)(state)
        with jax.named_scope('optimizer'):
            return state - gradient, value
    shape = jax.ShapeDtypeStruct
    return step, shape((512, 512), jnp.float32), shape((config.batch_size, 512), jnp.float32)
"""


@pytest.mark.slow
def test_a_peer_is_compiled_with_our_batch(tmp_path):
    pytest.importorskip('libtpu')
    (tmp_path / 'peer.py').write_text(PEER)
    contender = lib.Contender('peer', peer=f'{tmp_path / "peer.py"}:make')
    found = lib.compile_contender(contender, 'vit_base', 64, V5E, '2x2')
    assert set(found.cycles) >= {('encoder', 'MLP')}
    # Two products, forward and of the weights' gradient, at a part of the peak.
    least = 2 * 2 * 64 * 512 * 512 / V5E.flops * V5E.clock
    assert least < found.total < 1e5
    assert found.missing == found.kernels == 0
