"""The report of a compiled step: the text and the memory stand in for the compiler's."""

from types import SimpleNamespace

import jax
import pytest

from configs import vit_base
from mae_jax.errors import UserError
from mae_jax.planning import compile as compile_lib
from mae_jax.planning.bundles import Cycles
from mae_jax.planning.compiled_report import format_compiled
from mae_jax.planning.plan import Data, make_plan, make_run
from mae_jax.runtime.chips import named_chip
from mae_jax.training.sharding import make_mesh

TEXT = """\
HloModule jit_step

ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[1048576]{0} parameter(0)
  %gradients = f32[1048576]{0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3}}
  %loss = bf16[] all-reduce(%p), channel_id=2, replica_groups={{0,1,2,3}}
  %mlp = f32[8]{0} fusion(%p), metadata={op_name="jit(step)/jvp(MAE)/encoder/blocks/block_0/mlp/fc1/dot_general"}, \
backend_config={"estimated_cycles":"1000000000"}
  ROOT %update = f32[8]{0} fusion(%p), metadata={op_name="jit(step)/optimizer/add"}, \
backend_config={"estimated_cycles":"500000000"}
}
"""  # noqa: E501
MEMORY = SimpleNamespace(
    argument_size_in_bytes=3 * 2**30,
    output_size_in_bytes=3 * 2**30,
    alias_size_in_bytes=2 * 2**30,
    temp_size_in_bytes=5 * 2**30,
    generated_code_size_in_bytes=2**29,
)
COMPILED = SimpleNamespace(as_text=lambda: TEXT, memory_analysis=lambda: MEMORY)


def small():
    config = vit_base.get_config()
    sizes = {'model.width': 64, 'model.depth': 1, 'model.heads': 4, 'batch_size': 64}
    config.update_from_flattened_dict(sizes | {'model.decoder_depth': 1})
    return config


@pytest.fixture(scope='module')
def plan():
    return make_plan(small(), 4, Data(1_281_167, 0))


def test_numbers_are_those_of_the_program(plan):
    lines = format_compiled(plan, named_chip('v5e'), '2x2', COMPILED).splitlines()
    assert max(map(len, lines)) <= 80
    text = [' '.join(line.split()) for line in lines]
    assert '9.50 in all, of 16' in text  # 3 + (3 - 2) + 5 + 0.5
    assert '4.00 1 x all-reduce f32 4 devices once a step' in text
    assert '0.00 1 x small ones' in text
    assert '1000.00 0.00 67% MLP' in text
    assert '500.00 33% optimiser' in text
    # 1.5e9 cycles at 1.5 GHz are a second.
    assert '64 images/s, 16 a chip' in text
    assert f'{plan.product_flops / (4 * 197e12):.1%} MFU' in text
    days = 800 * 1_281_167 // 64 / 86400
    assert f'{days:.3g} days' in text
    assert any("estimated by XLA's cost model" in line for line in text)


def with_kernels():
    calls = [
        f'  %k{i} = f32[8]{{0}} custom-call(%p), custom_call_target="tpu_custom_call", '
        'metadata={op_name="jit(step)/jvp(MAE)/decoder/blocks/block_0/attention/pallas_call"}\n'
        for i in (1, 2)
    ]
    text = TEXT.replace('  ROOT', f'{"".join(calls)}  ROOT')
    return SimpleNamespace(as_text=lambda: text, memory_analysis=lambda: MEMORY)


def test_the_cycles_of_kernels_belong_to_their_part_and_to_the_speed(plan):
    kernels = {'k1': Cycles(300_000_000, 0), 'k2': Cycles(1_200_000_000, 0)}
    text = format_compiled(plan, named_chip('v5e'), '2x2', with_kernels(), kernels)
    assert max(map(len, text.splitlines())) <= 80
    text = ' '.join(text.split())
    assert '0.00 1500.00 50% attention: all else' in text
    assert '3000.00 100% in all 1500.00 of these in 2 calls of kernels' in text
    assert '32 images/s, 8 a chip' in text  # 3e9 cycles at 1.5 GHz are two seconds
    assert 'not known' not in text and 'counts once' not in text


def test_kernels_whose_cycles_are_missing_are_mentioned(plan):
    note = '(without {} calls of kernels, whose cycles are not known)'
    text = format_compiled(plan, named_chip('v5e'), '2x2', with_kernels())
    assert note.format(2) in text and 'of these in' not in text
    kernels = {'k2': Cycles(5, 1)}
    text = format_compiled(plan, named_chip('v5e'), '2x2', with_kernels(), kernels)
    assert note.format(1) in text and 'in 1 calls of kernels' in text
    assert 'a loop in a kernel, whose length is not stated, counts once' in text
    assert 'not known' not in format_compiled(plan, named_chip('v5e'), '2x2', COMPILED)


def test_a_program_without_cycles_has_no_speed(plan):
    call = '  %c = f32[8]{0} custom-call(%p), custom_call_target="__cudnn$fmhaSoftmax"\n  ROOT'
    without = TEXT.replace('estimated_cycles', 'other').replace('  ROOT', call)
    compiled = SimpleNamespace(as_text=lambda: without, memory_analysis=lambda: MEMORY)
    text = format_compiled(plan, named_chip('h100'), '1x4', compiled)
    assert 'MFU' not in text and 'no speed: XLA states no cycles' in text
    assert '9.50  in all, of 80, of which JAX takes 75%' in text
    assert ' 1  __cudnn$fmhaSoftmax' in text
    assert '__cudnn' not in format_compiled(plan, named_chip('v5e'), '2x2', compiled)


@pytest.mark.parametrize(
    ('chip', 'topology', 'message'),
    [
        ('l4', '2x2', '--compile does not know l4: choose --chip v4, v5e, v5p, v6e, h100'),
        ('v5e', '2by2', '--topology 2by2 is none of v5e: .* from 2x2 to 16x16'),
        ('v5e', '2x2x2', '--topology 2x2x2 is none of v5e'),
        ('v5e', '32x32', '--topology 32x32 is none of v5e'),
        ('h100', '8', '--topology 8 is none of h100: give hosts x GPUs of a host, as 1x8'),
        ('v5p', '2x2', '--topology 2x2 is none of v5p: .* from 2x2x1 to'),
    ],
)
def test_what_cannot_be_compiled_for_is_one_sentence(chip, topology, message):
    with pytest.raises(UserError, match=message):
        compile_lib.topology_devices(named_chip(chip), topology)


def test_a_topology_that_the_compiler_refuses_is_one_sentence():
    pytest.importorskip('libtpu')
    with pytest.raises(UserError, match='--topology 3x5 is none of v5e'):
        compile_lib.topology_devices(named_chip('v5e'), '3x5')


def test_without_the_compiler_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(compile_lib, 'find_spec', lambda name: None)
    monkeypatch.delenv('TPU_LIBRARY_PATH', raising=False)
    with pytest.raises(UserError, match=r"pip install 'jax\[tpu\]=="):
        compile_lib.topology_devices(named_chip('v5e'), '2x2')


def test_without_cuda_the_message_says_what_to_install(monkeypatch):
    def missing(**_):
        raise NotImplementedError('topology not implemented for cuda')

    monkeypatch.setattr(compile_lib.topologies, 'get_topology_desc', missing)
    with pytest.raises(UserError, match=r"pip install 'jax\[cuda13\]'"):
        compile_lib.topology_devices(named_chip('h100'), '1x8')


def refusing(monkeypatch, message):
    """Lets the compiler fail with this message."""

    def refuse(**_):
        raise jax.errors.JaxRuntimeError(message)

    step = SimpleNamespace(lower=lambda *_: SimpleNamespace(compile=refuse))
    monkeypatch.setattr(compile_lib, 'jit_step', lambda *_: step)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('Ran out of memory in memory space hbm. Used 25.34G of 15.75G hbm.', '25.34 GiB of 15.75'),
        ('Allocation of 3 bytes', 'Allocation of 3 bytes'),
    ],
)
def test_a_step_that_does_not_fit_is_one_sentence(monkeypatch, text, message):
    refusing(monkeypatch, f'RESOURCE_EXHAUSTED: {text}')
    run = make_run(small(), make_mesh(1, jax.devices()[:4]), Data(1000, 0))
    with pytest.raises(UserError, match=f'does not fit: .*{message}.*mesh.fsdp') as error:
        compile_lib.compile_step(run)
    assert '\n' not in str(error.value)


def test_a_program_of_a_newer_libtpu_is_one_sentence(monkeypatch):
    refusing(
        monkeypatch,
        'INTERNAL: RET_CHECK failure (external/xla/xla/hlo/ir/hlo_instruction.cc:390) '
        'async-update instruction should have 1 operands but sees 3\nat 0x1',
    )
    run = make_run(small(), make_mesh(1, jax.devices()[:4]), Data(1000, 0))
    with pytest.raises(UserError, match=r"this compiler wrote.*pip install 'jax\[tpu\]==") as error:
        compile_lib.compile_step(run)
    assert '\n' not in str(error.value)


def test_a_failure_within_the_compiler_is_not_blamed_on_its_version(monkeypatch):
    refusing(monkeypatch, 'INTERNAL: RET_CHECK failure (platforms/xla/service/lowering.cc:12)')
    run = make_run(small(), make_mesh(1, jax.devices()[:4]), Data(1000, 0))
    with pytest.raises(jax.errors.JaxRuntimeError, match='lowering'):
        compile_lib.compile_step(run)
