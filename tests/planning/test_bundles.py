"""The cycles of a kernel: schedules as libtpu writes them, shortened to what controls them."""

# ruff: noqa: E501
import pytest

from mae_jax.planning.bundles import Cycles, count_bundles

INDEX = '/* copy for cssa :: iteration index, stage = 0 :: iteration index, stage = 0 */'
# Of a kernel that multiplies ten times in each of the eight steps of its grid, for a v5e.
GRID = {
    0x00: ' :  { %7 = vsyncpa [#allocation5], 0 } /* entry bundle: %kernel.1 = custom-call(%copy) */',
    0x05: ' :  {} /* End region 90 */',
    0x06: f'LB: > {{ %s22_s13 = sadd.s32 1, %s1048_s12 {INDEX} }} /* Start region 95 */',
    0x1b: ' : > { %s524_s19 = sadd.s32 4294967294, %s1048_s12 /* iteration index, stage = 2 */ }',
    0x23: ' : > { %p661_p11 = pneg %p98_p10  ;;  %148 = sbr.rel (%p98_p10) target = $region28 }',
    0x27: ' : > { %664 = dma.hbm_to_vmem [thread:$0]  (!%p662_p0) /* \nbase_bounds: (8, 16, 1)\n */ }',
    0x30: 'LB: >> { %s218_s14 = sadd.s32 1, %s1116_s8 } /* Start region 84 :: Start region 41 */',
    0x31: ' : >> { %p215_p12 = scmp.ge.s32.totalorder %s218_s14, 10 /* loop exit test */ }',
    0x5b: ' : > { %217 = sbr.rel (!%p215_p12) target = $region84 }',
    0x5f: ' : >> {} /* End region 38 :: End region 39 :: End region 83 */',
    0x64: 'PF: > { %p676_p5 = scmp.ge.s32.totalorder %s1048_s12, 2 } /* Start/End empty region 28 */',
    0x69: ' : > { %p16_p0 = scmp.ge.s32.totalorder %s22_s13, 10 /* loop exit test */ } /* End region 95 */',
    0x6b: ' : > { %18 = sbr.rel (!%p16_p0) target = $region95 } /* End region 3 */',
    0x74: ' :  { %415 = vsyncpa [#allocation6 + $0x1], 1 } /* exit bundle: %kernel.1 = custom-call(%copy) */',
}  # fmt: skip
# Twelve products, three an iteration, without a grid; then as many as an argument says.
UNROLLED = {
    0x10: 'LB: > { %s888_s0 = sphi %s950_s0, %s81_s0 } /* Start region 43 :: Start region 22 */',
    0x11: ' : > { %s81_s0 = sadd.s32 3, %s888_s0 /* copy for cssa */ }',
    0x14: ' : > { %p105_p0 = scmp.ge.s32.totalorder (%p9_p1), %s81_s0, 12 /* loop exit test */ }',
    0x40: ' : { %80 = sbr.rel (!%p105_p0) target = $region43 }',
    0x49: ' : {}',
}  # fmt: skip
UNKNOWN = UNROLLED | {0x14: ' : > { %p105_p0 = scmp.ge.s32.totalorder %s81_s0, %s2_s9 }'}


def dump(marks: dict[int, str]) -> str:
    """Writes a schedule; bundles that are not given are empty."""
    lines = ['= control target key start', 'LB: loop body', '= control target key end', '']
    for address in range(max(marks) + 1):
        number = f'{address:#x}' if address else '0'
        lines.append(f'{number:>6} {marks.get(address, " :  {}")}')
    return '\n'.join(lines)


def test_bundles_count_once_for_each_iteration_of_the_loops_around_them():
    outside = 0x06 + (0x75 - 0x70)
    grid = (8 + 2) * ((0x70 - 0x06) - (0x64 - 0x28))  # two iterations load or store alone
    product = 8 * ((0x64 - 0x28) - (0x60 - 0x30)) + 8 * 10 * (0x60 - 0x30)
    assert count_bundles(dump(GRID)) == Cycles(outside + grid + product, 0)


def test_an_unrolled_loop_has_fewer_iterations():
    assert count_bundles(dump(UNROLLED)) == Cycles(0x4A + (4 - 1) * (0x45 - 0x10), 0)


def test_a_loop_of_unknown_length_counts_once_and_is_reported():
    assert count_bundles(dump(UNKNOWN)) == Cycles(0x4A, 1)


@pytest.mark.parametrize('text', ['', 'Schedule analysis:\n\ttotal scheduled bundles:    117\n'])
def test_another_text_has_no_bundles(text):
    with pytest.raises(ValueError, match='no bundles'):
        count_bundles(text)
