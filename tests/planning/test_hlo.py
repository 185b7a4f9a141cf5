"""The text of a compiled program is read as XLA writes it; the texts are written by hand."""

# ruff: noqa: E501
import jax
import jax.numpy as jnp
import pytest

from mae_jax.planning.hlo import Array, parse

PROGRAM = """\
HloModule jit_step, is_scheduled=true, input_output_alias={ {0}: (0, {}, may-alias) }

%fused_computation (param_0.1: bf16[8,128]) -> f32[8,128] {
  %param_0.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %convert.1 = f32[8,128]{1,0:T(8,128)} convert(%param_0.1), metadata={op_name="inside"}
}

%body (arg: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %arg = (s32[]{:T(128)}, /*index=1*/f32[8,128]{1,0:T(8,128)}) parameter(0)
  %inner = (s32[]) while(%arg), condition=%condition, body=%innermost, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %copy.1 = (s32[], f32[8,128]) tuple(%arg)
}

%innermost (arg.1: (s32[])) -> (s32[]) {
  ROOT %deep = (s32[]) tuple()
}

%condition (arg.2: (s32[])) -> pred[] {
  ROOT %less = pred[] constant(true)
}

ENTRY %main.9_spmd (p0: bf16[8,128]) -> f32[8,128] {
  %p0 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0), metadata={op_name="state.params[\\'a\\']"}
  %fusion.2 = f32[8,128]{1,0:T(8,128)} fusion(bf16[8,128]{1,0:T(8,128)(2,1)S(1)} %p0), kind=kLoop, calls=%fused_computation, metadata={op_name="jit(step)/add" source_file="a.py"}, backend_config={"estimated_cycles":"123","iteration_bounds":["8"]}
  %while.1 = (s32[], f32[8,128]) while(%fusion.2), condition=%condition, body=%body, metadata={op_name="jit(step)/while"}, backend_config={"known_trip_count":{"n":"4"}}
  ROOT %gte = f32[8,128]{1,0:T(8,128)} get-tuple-element(%while.1), index=1
}
"""


def test_instructions_have_types_operands_and_attributes():
    program = parse(PROGRAM)
    assert program.entry == 'main.9_spmd'
    p0, fusion, loop, _ = program.computations[program.entry]
    assert (p0.opcode, p0.arrays, p0.cycles) == ('parameter', (Array('bf16', (8, 128)),), None)
    assert (fusion.name, fusion.opcode, fusion.operands) == ('fusion.2', 'fusion', ('p0',))
    assert (fusion.op_name, fusion.cycles) == ('jit(step)/add', 123)
    assert fusion.called == {'calls': ('fused_computation',)}
    assert loop.arrays == (Array('s32', ()), Array('f32', (8, 128)))
    assert (program.trip_count(loop), loop.op_name) == (4, 'jit(step)/while')


def test_a_loops_instructions_are_executed_as_often_as_the_loops_around_them():
    executed = {each.instruction.name: each for each in parse(PROGRAM).executed()}
    assert {name: each.times for name, each in executed.items()} == {
        **{'p0': 1, 'fusion.2': 1, 'while.1': 1, 'gte': 1},
        **{'arg': 4, 'inner': 4, 'copy.1': 4, 'deep': 20, 'less': 20},
    }
    assert [loop.name for loop in executed['deep'].loops] == ['while.1', 'inner']
    assert 'convert.1' not in executed  # a fusion is one instruction
    (inside,) = parse(PROGRAM).inside(executed['fusion.2'].instruction)
    assert [each.name for each in inside] == ['param_0.1', 'convert.1']


def test_a_loops_length_is_stated_by_the_compiler_or_by_its_condition():
    def program(condition: str, config: str = '') -> str:
        return f"""HloModule m

%body (a: (s32[])) -> (s32[]) {{
  ROOT %a = (s32[]) parameter(0)
}}

%condition (a: (s32[])) -> pred[] {{
  %a = (s32[]) parameter(0)
  %i = s32[] get-tuple-element(%a), index=0
  %n = s32[]{{:T(128)}} constant(6)
  ROOT %c = pred[] compare({condition}
}}

ENTRY %main (p: (s32[])) -> (s32[]) {{
  %p = (s32[]) parameter(0)
  ROOT %w = (s32[]) while(%p), condition=%condition, body=%body{config}
}}
"""

    stated = ', backend_config={"known_trip_count":{"n":"3"}}'
    texts = [
        program('%i, %n), direction=LT'),
        program('%i, %n), direction=LT', stated),
        program('%i, %i), direction=LT'),
        program('%i, %n), direction=NE'),
    ]
    programs = [parse(text) for text in texts]
    loops = [program.computations['main'][1] for program in programs]
    counts = [program.trip_count(w) for program, w in zip(programs, loops, strict=True)]
    assert counts == [6, 3, None, None]
    assert [program.count_unknown_loops() for program in programs] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ('dtype', 'size'),
    [('f32', 24), ('bf16', 12), ('pred', 6), ('s8', 6), ('f8e4m3fn', 6), ('u64', 48), ('s4', 3)],
)
def test_sizes_are_bytes(dtype, size):
    assert Array(dtype, (2, 3)).size == size


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match='ENTRY'):
        parse('HloModule empty\n')


def test_a_program_of_this_version_of_jax_is_read():
    def loop(x):
        def body(x, _):
            return jnp.sin(x @ x), None

        return jax.lax.scan(body, x, length=7)[0]

    text = jax.jit(loop).lower(jnp.ones((4, 4))).compile().as_text()
    products = [
        each for each in parse(text).executed() if 'dot_general' in each.instruction.op_name
    ]
    assert products and {each.times for each in products} == {7}
    assert all(each.instruction.arrays == (Array('f32', (4, 4)),) for each in products)
