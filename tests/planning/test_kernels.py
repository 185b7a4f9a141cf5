"""Pallas kernels of a compiled step are found, and cost what can be counted by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import SingleDeviceSharding

from mae_jax.planning import kernels as lib
from mae_jax.planning.bundles import Cycles
from mae_jax.planning.compile import SLICES, topology_devices
from mae_jax.planning.hlo import Array, Program, parse
from mae_jax.runtime.chips import named_chip

V5E = named_chip('v5e')
CALL = """\
HloModule jit_step

ENTRY %main (p: bf16[8,197,512]) -> bf16[8,197,512] {
  %p = bf16[8,197,512]{2,1,0} parameter(0)
  %first = bf16[8,197,512]{2,1,0:T(8,128)(2,1)S(1)} custom-call(%p, %p), custom_call_target="tpu_custom_call", \
operand_layout_constraints={bf16[8,197,512]{2,1,0}, f32[8]{0}}, frontend_attributes={kernel_metadata={}}, \
backend_config={"flag_configs":[],"custom_call_config":{"body":"TUzv","needs_layout_passes":true},"aliasing_operands":{"lists":[]}}
  %other = bf16[8] custom-call(%p), custom_call_target="Sharding", backend_config=""
  ROOT %second = bf16[8,197,512]{2,1,0} custom-call(%first, %p), custom_call_target="tpu_custom_call", \
operand_layout_constraints={bf16[8,197,512]{2,1,0}, f32[8]{0}}, backend_config={"custom_call_config":{"needs_layout_passes":true,"body":"TUzv"}}
}
"""  # noqa: E501


def test_kernels_are_found_with_what_they_take_and_return():
    found = lib.find_kernels(parse(CALL))
    assert list(found) == ['first', 'second']
    array = Array('bf16', (8, 197, 512))
    config = '{"custom_call_config": {"body": "TUzv", "needs_layout_passes": true}}'
    assert found['first'] == lib.Kernel(config, (array, Array('f32', (8,))), (array,))
    assert found['first'] == found['second']


def test_without_a_schedule_the_cycles_are_missing(monkeypatch):
    monkeypatch.setattr(lib.sys, 'executable', '/bin/false')
    assert lib.count_kernel_cycles(parse(CALL), V5E, '2x2') == {}


def test_each_distinct_kernel_is_compiled_once(monkeypatch):
    def compile_apart(kernels, chip, topology):
        assert len(kernels) == 1 and (chip, topology) == (V5E, '2x2')
        return [Cycles(53_000, 0)]

    monkeypatch.setattr(lib, '_compile_apart', compile_apart)
    cycles = lib.count_kernel_cycles(parse(CALL), V5E, '2x2')
    assert cycles == {'first': Cycles(53_000, 0), 'second': Cycles(53_000, 0)}


def test_a_call_costs_at_least_what_moving_its_arrays_takes(monkeypatch):
    """The operands of the first are in memory, its result, which the second takes, is not."""
    size = 8 * 197 * 512 * 2
    assert lib.find_traffic(parse(CALL)) == {'first': 2 * size, 'second': 2 * size}
    monkeypatch.setattr(lib, '_compile_apart', lambda *_: [Cycles(5, 0)])
    cycles = lib.count_kernel_cycles(parse(CALL), V5E, '2x2')['first'].cycles
    assert cycles == round(2 * size / 819e9 * 1.5e9)


def test_a_gpu_has_no_kernels_of_a_tpu():
    assert lib.count_kernel_cycles(parse(CALL), named_chip('h100'), '1x8') == {}


def products(chip: str, images: int, times: int) -> Program:
    """Compiles a kernel that multiplies each of `images` matrices by another, `times` times."""

    def kernel(x, w, out):
        def product(_, value):
            return jnp.dot(value.astype(w.dtype), w[...], preferred_element_type=jnp.float32)

        out[0] = jax.lax.fori_loop(0, times, product, x[0].astype(jnp.float32))

    def call(x, w):
        each = pl.BlockSpec((1, 256, 256), lambda i: (i, 0, 0))
        shape = jax.ShapeDtypeStruct((images, 256, 256), jnp.float32)
        whole = pl.BlockSpec((256, 256), lambda i: (0, 0))
        return pl.pallas_call(
            kernel, grid=(images,), in_specs=[each, whole], out_specs=each, out_shape=shape
        )(x, w)

    device = topology_devices(named_chip(chip), SLICES[chip].smallest)[0]
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=SingleDeviceSharding(device))
        for shape in ((images, 256, 256), (256, 256))
    ]
    return parse(jax.jit(call).lower(*arguments).compile().as_text())


@pytest.mark.slow
@pytest.mark.parametrize('chip', ['v5e', 'v5p', 'v6e'])
def test_a_kernel_costs_its_products(chip):
    """Each loop's share follows from two lengths; a product takes no less than the peak allows."""
    pytest.importorskip('libtpu')

    def cycles(images, times):
        program, topology = products(chip, images, times), SLICES[chip].smallest
        (found,) = lib.count_kernel_cycles(program, named_chip(chip), topology).values()
        assert found.unknown_loops == 0
        return found.cycles

    base, longer, longest = cycles(8, 10), cycles(8, 20), cycles(8, 40)
    assert longest - longer == 2 * (longer - base)
    per_product = (longer - base) / (8 * 10)
    least = 2 * 256**3 / named_chip(chip).flops * named_chip(chip).clock
    assert least <= per_product < 8 * least  # v6e's arrays are of this size, and wait to be filled
    assert cycles(16, 10) == pytest.approx(2 * base, rel=0.05)
