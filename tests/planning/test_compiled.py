"""What a step communicates and costs is derived from its text; the texts are written by hand."""

# ruff: noqa: E501
import pytest

from mae_jax.planning.compiled import (
    Collective,
    count_calls,
    count_cycles,
    count_donated,
    count_kernels,
    find_collectives,
    find_dtype,
    find_host_transfers,
    part_of,
)
from mae_jax.planning.hlo import parse

LOOP = """\
HloModule jit_step, input_output_alias={ {0}: (0, {}, may-alias), {1}: (2, {}, must-alias) }, \
entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%all-reduce-scatter.1 (input: f32[64,128], more: f32[32]) -> (f32[16,128], f32[8]) {
  %input = f32[64,128]{1,0:T(8,128)S(1)} parameter(0)
  %more = f32[32]{0:T(128)} parameter(1)
  %all-reduce.1 = (f32[64,128]{1,0:T(8,128)}, f32[32]{0}) all-reduce(%input, %more), channel_id=7, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %dynamic-slice.1 = f32[16,128]{1,0} dynamic-slice(%all-reduce.1), dynamic_slice_sizes={16,128}
  ROOT %result = (f32[16,128]{1,0}, f32[8]{0}) tuple(%dynamic-slice.1)
}

%piece.1 (p: bf16[16,128]) -> bf16[64,128] {
  %p = bf16[16,128]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[64,128]{1,0} all-gather(%p), channel_id=3, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={0}
}

%piece.2 (p: bf16[16,128]) -> bf16[64,128] {
  %p = bf16[16,128]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[64,128]{1,0} all-gather(%p), channel_id=3, replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}, dimensions={0}
}

%work (p: bf16[64,128]) -> f32[8] {
  ROOT %x = f32[8]{0} constant(0)
}

%body (arg: (s32[])) -> (s32[]) {
  %start = bf16[64,128]{1,0} fusion(%a), kind=kCustom, calls=%piece.1
  %next = bf16[64,128]{1,0} fusion(%a), kind=kCustom, calls=%piece.2
  %work = f32[8]{0} fusion(%next), kind=kLoop, calls=%work, metadata={op_name="jit(step)/accumulate/while/body/jvp(MAE)/encoder/blocks/block_0/mlp/fc1/dot_general"}, backend_config={"estimated_cycles":"100"}
  %blocks = (s32[]) while(%x), condition=%condition, body=%block, metadata={op_name="jit(step)/accumulate/while/body/jvp(MAE)/encoder/blocks/while"}, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %out = (s32[]) tuple()
}

%block (arg: (s32[])) -> (s32[]) {
  %inner = f32[8]{0} fusion(%next), kind=kLoop, calls=%work, metadata={op_name="jit(step)/accumulate/while/body/transpose(jvp(MAE))/encoder/blocks/while/body/norm1/mul"}, backend_config={"estimated_cycles":"5"}
  ROOT %out = (s32[]) tuple()
}

%condition (arg: (s32[])) -> pred[] {
  %arg = (s32[]{:T(128)}) parameter(0)
  %count = s32[]{:T(128)} constant(4)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %count), direction=LT
}

ENTRY %main (p0: f32[8]) -> f32[8] {
  %p0 = f32[8]{0} parameter(0)
  %loop = (s32[]) while(%t), condition=%condition, body=%body, metadata={op_name="jit(step)/accumulate/while"}, backend_config={"estimated_cycles":"9999"}
  %loss = (f32[]{:T(128)}, bf16[2]{0}) all-reduce(%p0, %q), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
  %scattered = (f32[16,128]{1,0}, f32[8]{0}) fusion(%p0, %p0), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %update = f32[8]{0} fusion(%p0), kind=kLoop, calls=%work, metadata={op_name="jit(step)/optimizer/add"}, backend_config={"estimated_cycles":"40"}
}
"""


def test_collectives_are_counted_with_their_bytes_and_their_place():
    assert find_collectives(parse(LOOP)) == [
        # Two fusions overlap one gather with computation; the loop runs four times.
        Collective('all-gather', 'bf16', 2, 4, 4 * 64 * 128 * 2, 'accumulation loop'),
        # A reduction within a fusion that keeps a slice.
        Collective('reduce-scatter', 'f32', 4, 1, 4 * (64 * 128 + 32), 'once a step'),
        Collective('all-reduce', 'bf16', 8, 1, 4, 'once a step'),
        Collective('all-reduce', 'f32', 8, 1, 4, 'once a step'),
    ]


ASYNCHRONOUS = """\
HloModule jit_step

ENTRY %main (p0: f32[8]) -> f32[8] {
  %p0 = f32[8]{0} parameter(0)
  %p1 = bf16[4]{0} parameter(1)
  %ar = (f32[8]{0}, bf16[4]{0}) all-reduce-start(f32[8]{0} %p0, bf16[4]{0} %p1), channel_id=1
  %ard = (f32[8]{0}, bf16[4]{0}) all-reduce-done(%ar)
  %ag = ((f32[8]{0}, bf16[4]{0}), (f32[32]{0}, bf16[16]{0})) all-gather-start(%p0, %p1), channel_id=2
  %agd = (f32[32]{0}, bf16[16]{0}) all-gather-done(%ag)
  %cp = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p0), channel_id=3
  %rs = f32[2]{0} reduce-scatter(%p0), channel_id=4
  ROOT %end = f32[8]{0} copy(%p0)
}
"""


def test_asynchronous_collectives_count_once_with_their_results():
    collectives = find_collectives(parse(ASYNCHRONOUS))
    assert {each.group for each in collectives} == {0}  # all
    found = {each[:2]: each.size for each in collectives}
    assert found == {
        ('all-reduce', 'f32'): 32,
        ('all-reduce', 'bf16'): 8,
        ('all-gather', 'f32'): 128,
        ('all-gather', 'bf16'): 32,
        ('collective-permute', 'f32'): 32,
        ('reduce-scatter', 'f32'): 32,  # of what it takes
    }


KERNELS = """\
HloModule jit_step

%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %kernel = f32[8]{0} custom-call(%p), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/jvp(MAE)/decoder/blocks/while/body/Block/attention/attention_forward/pallas_call"}
}

%condition (p: f32[8]) -> pred[] {
  %p = f32[8]{0} parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %y = f32[8]{0} custom-call(%x), custom_call_target="Sharding"
  %loop = f32[8]{0} while(%y), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  ROOT %update = f32[8]{0} fusion(%loop), metadata={op_name="jit(step)/optimizer/add"}, backend_config={"estimated_cycles":"40"}
}
"""


def test_cycles_are_those_of_the_instructions_times_their_loops():
    assert count_cycles(parse(LOOP)) == {
        ('encoder', 'MLP'): 400,
        ('encoder', 'norms'): 60,  # 4 x 3 x 5
        ('', 'optimiser'): 40,
    }


def test_kernels_in_a_loop_cost_their_cycles_each_time():
    program = parse(KERNELS)
    assert count_kernels(program) == {'kernel': 12}
    assert count_calls(program) == {'tpu_custom_call': 12, 'Sharding': 1}
    assert count_cycles(program) == {('', 'optimiser'): 40}
    assert count_cycles(program, {'kernel': 7}) == {
        ('', 'optimiser'): 40,
        ('decoder', 'attention: all else'): 12 * 7,
    }


@pytest.mark.parametrize(
    ('op_name', 'part'),
    [
        ('jit(step)/jvp(MAE)/encoder/blocks/blocks._loop/block_0/attention/qkv/dot_general',
         ('encoder', 'attention: projections')),
        ('jit(step)/transpose(jvp(MAE))/decoder/blocks/block_3/attention/proj/reduce_sum',
         ('decoder', 'attention: projections')),
        ('jit(step)/jvp(MAE)/decoder/blocks/block_3/attention/attention._plain/sub',
         ('decoder', 'attention: all else')),
        ('jit(step)/jvp(MAE)/encoder/blocks/while/body/closed_call/Block/mlp/fc1/dot_general',
         ('encoder', 'MLP')),
        ('jit(step)/jvp(MAE)/encoder/norm/rsqrt', ('encoder', 'norms')),
        ('jit(step)/jvp(MAE)/decoder/blocks/block_0/norm2/mul', ('decoder', 'norms')),
        ('jit(step)/jvp(MAE)/decoder/head/dot_general', ('decoder', 'embedding, shuffling, residuals')),
        ('jit(step)/accumulate/while/body/closed_call/add', ('', 'sums over micro-batches')),
        ('jit(step)/optimizer/mul', ('', 'optimiser')),
        ('jit(step)/jvp(MAE)/MAE._errors/reduce_sum', ('', 'loss and the rest')),
        ('', ('', 'loss and the rest')),
    ],
)  # fmt: skip
def test_operations_belong_to_parts_of_the_model(op_name, part):
    assert part_of(op_name) == part


def test_donated_arguments_are_counted():
    assert count_donated(parse(LOOP)) == 2
    assert count_donated(parse(ASYNCHRONOUS)) == 0


HOST = """\
HloModule jit_step

ENTRY %main (p0: f64[8]) -> f32[] {
  %p0 = f64[8]{0} parameter(0)
  %token = token[] after-all()
  %in = (f32[8]{0}, token[]) infeed(%token)
  %send = (f32[8]{0}, u32[], token[]) send(%p0, %token), channel_id=2, is_host_transfer=true
  %done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  %callback = f32[] custom-call(%p0), custom_call_target="xla_ffi_python_cpu_callback"
  %host = f32[8]{0:S(5)} copy(%p0)
  ROOT %x = f32[] constant(0)
}
"""


def test_transfers_to_the_host_and_dtypes_are_found():
    program = parse(HOST)
    assert find_host_transfers(program) == ['in', 'send', 'done', 'callback', 'host']
    assert find_dtype(program, 'f64') == ['p0']
    assert find_host_transfers(parse(LOOP)) == find_dtype(parse(LOOP), 'f64') == []
