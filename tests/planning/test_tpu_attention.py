"""Attention's kernels compiled for TPUs that are not here, over several devices."""

import jax
import jax.numpy as jnp
import pytest
from helpers.slow import slow_after
from jax.sharding import NamedSharding, PartitionSpec

from mae_jax.models.attention.dispatch import attend
from mae_jax.planning import compiled as lib
from mae_jax.planning.compile import SLICES, topology_devices
from mae_jax.planning.hlo import Program, parse
from mae_jax.runtime.chips import named_chip
from mae_jax.training.sharding import make_mesh, on_mesh

CASES = [
    ('v5e', 4, (7, 128, 2), 'none'),
    ('v5e', 1, (50, 768, 12), 'none'),  # ViT-B's encoder
    ('v5e', 2, (50, 1280, 16), 'none'),  # ViT-H's: heads of 80 columns
    ('v5e', 4, (197, 512, 16), 'remat'),  # the decoder
    ('v5e', 4, (50, 192, 3), 'scan'),  # columns of one and a half registers
    ('v5e', 4, (1024, 128, 4), 'none'),
    ('v5p', 4, (197, 512, 16), 'none'),
    ('v6e', 4, (197, 512, 16), 'none'),
    ('v5p', 4, (50, 768, 12), 'none'),
    ('v6e', 4, (50, 768, 12), 'none'),
]


def compile_attention(
    chip: str, fsdp: int, sizes: tuple[int, int, int], loop: str, rows: int
) -> Program:
    """Compiles attention of `sizes` (tokens, width, heads), forward and backward.

    Args:
      loop: 'none', 'remat' for rematerialised attention, or 'scan' for three times in a loop.
      rows: images of a device.
    """
    pytest.importorskip('libtpu')
    tokens, width, heads = sizes
    mesh = make_mesh(fsdp, topology_devices(named_chip(chip), SLICES[chip].smallest))
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def array(columns):
        shape = rows * mesh.size, tokens, columns
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    def mix(qkv):
        return attend(qkv, heads)[0]

    def repeat(qkv):
        return jax.lax.scan(lambda x, _: (x + jnp.tile(mix(x), 3), None), qkv, length=3)[0]

    function = {'none': mix, 'remat': jax.checkpoint(mix), 'scan': repeat}[loop]

    def both(qkv, gradient):
        mixed, pull = jax.vjp(function, qkv)
        return mixed, pull(gradient)

    arguments = array(3 * width), array(3 * width if loop == 'scan' else width)
    return parse(jax.jit(on_mesh(both, mesh)).lower(*arguments).compile().as_text())


@pytest.mark.parametrize(('chip', 'fsdp', 'sizes', 'loop'), slow_after(1, CASES))
def test_kernels_compile_for_each_chip_and_attend_to_a_devices_own_rows(chip, fsdp, sizes, loop):
    program = compile_attention(chip, fsdp, sizes, loop, rows=2)
    assert lib.find_collectives(program) == []
    calls = [each.instruction for each in program.executed()]
    calls = [each for each in calls if 'custom_call_target="tpu_custom_call"' in each.text]
    assert {each.op_name.rpartition('/attention_')[2].partition('/')[0] for each in calls} == {
        'forward', 'backward',
    }  # fmt: skip
    assert all(each.arrays[0].shape[:2] == (2, sizes[0]) for each in calls)
