"""Counts the cycles of a TPU kernel from libtpu's dump of its schedule.

The dump (`*-final_bundles.txt`) lists the instruction bundles of a kernel. A bundle takes about one
cycle; what a core waits for memory is not in it. `LB` marks where the body of a loop begins, a
branch back to a region that starts there ends it four bundles later, and the loop's length stands
in its exit test:

      0x30 LB: >> {  ... } /* Start region 84 :: Start region 41 */
      0x31   : >> {  ... ;;  %p215_p12 = scmp.ge.s32.totalorder %s218_s14, 10 /* loop exit test */ }
      0x5b   : > { %217 = sbr.rel (!%p215_p12) target = $region84 }

The loop over a kernel's grid is a pipeline: two more iterations than the grid has steps load and
store alone, and branch over what computes.
"""

import re
from typing import NamedTuple

DELAY_SLOTS = 4
"""Bundles after a branch that are executed before it takes effect."""
PIPELINE = 2
"""Iterations of the loop over a grid that only load or only store."""

_BUNDLE = re.compile(r'^ +(?:0x)?([0-9a-f]+) +(LB|PF)? *: ')
_BRANCH = re.compile(r'sbr\.rel \((!?)(%\w+)\) target = \$region(\d+)')
_STARTS = re.compile(r'Start region (\d+)')
_FALLTHROUGH = re.compile(r'Start/End empty region (\d+)')
_EXIT = re.compile(
    r'(%p\w+) = scmp\.ge\.s32\.totalorder (?:\(%\w+\), )?(%s\w+), (\d+) /\* loop exit test'
)
_ADD = re.compile(r'(%s\w+) = sadd\.s32 (\d+), ')


class Cycles(NamedTuple):
    """Describes what a call of a kernel costs."""

    cycles: int
    unknown_loops: int
    """Loops whose length the dump does not state; their bodies count once."""


class _Bundle(NamedTuple):
    mark: str
    text: str


def count_bundles(dump: str) -> Cycles:
    """Counts the bundles that one call of a kernel executes; both sides of a condition count.

    Args:
      dump: the text of a `*-final_bundles.txt`.

    Raises:
      ValueError: it lists no bundles.
    """
    bundles = _parse(dump)
    if not bundles:
        raise ValueError('The dump lists no bundles.')
    code = '\n'.join(bundle.text for bundle in bundles)
    exits = {predicate: (index, int(bound)) for predicate, index, bound in _EXIT.findall(code)}
    steps = {name: int(step) for name, step in _ADD.findall(code)}
    times, unknown = [1] * len(bundles), 0
    for start, end, predicate in _loops(bundles):
        if predicate not in exits:
            unknown += 1
            continue
        index, bound = exits[predicate]
        trips = -(-bound // steps.get(index, 1))
        skipped = ()
        if 'iteration index, stage = 0' in bundles[start].text:
            skipped = _computation(bundles, start, end)
        for i in range(start, end):
            times[i] *= trips - PIPELINE if i in skipped else trips
    return Cycles(sum(times), unknown)


def _parse(dump: str) -> list[_Bundle]:
    """Returns the bundles in the order of their addresses, some of which span several lines."""
    bundles = []
    for line in dump.splitlines():
        if match := _BUNDLE.match(line):
            bundles.append(_Bundle(match[2] or '', line))
        elif bundles:
            bundles[-1] = bundles[-1]._replace(text=f'{bundles[-1].text}\n{line}')
    return bundles


def _loops(bundles: list[_Bundle]) -> list[tuple[int, int, str]]:
    """Returns begin, end and the predicate of the exit of each loop."""
    heads = {
        region: i
        for i, bundle in enumerate(bundles)
        if bundle.mark == 'LB'
        for region in _STARTS.findall(bundle.text)
    }
    return [
        (heads[region], min(i + 1 + DELAY_SLOTS, len(bundles)), predicate)
        for i, bundle in enumerate(bundles)
        for _, predicate, region in _BRANCH.findall(bundle.text)
        if heads.get(region, len(bundles)) <= i
    ]


def _computation(bundles: list[_Bundle], start: int, end: int) -> range:
    """Returns the bundles of a loop over a grid which its first and last iterations skip."""
    ends = {
        region: i
        for i in range(start, end)
        for region in _FALLTHROUGH.findall(bundles[i].text)
    }  # fmt: skip
    for i in range(start, end):
        for _, _, region in _BRANCH.findall(bundles[i].text):
            if ends.get(region, 0) > i:
                return range(i + 1 + DELAY_SLOTS, ends[region])
    return range(0)
