"""Lists where a profiled run spent its time, as a Markdown table.

    mae-jax train vit_large --config.profile_steps=8,10 --workdir=runs/profiled ...
    python benchmarks/kernels.py runs/profiled

Adds up the time of each kernel of the devices in the run's newest trace; on a CPU, which has no
kernels, of each operation of XLA's threads. Kernels that overlap, on several streams, are each
counted whole.
"""

import argparse
import collections
from collections.abc import Iterator
from pathlib import Path

from jax.profiler import ProfileData, ProfileEvent
from measure import markdown

NOT_KERNELS = ('Steps', 'XLA Modules', 'XLA Ops', 'XLA TraceMe', 'Framework', 'Source', 'Launch')
"""Lines of a device that describe the same time in other words."""


def newest_trace(workdir: Path) -> Path:
    """Returns the newest trace below a work directory.

    Raises:
      SystemExit: there is none.
    """
    traces = sorted(workdir.rglob('*.xplane.pb'), key=lambda path: path.stat().st_mtime)
    if not traces:
        raise SystemExit(f'{workdir} has no trace: set profile_steps in its run.')
    return traces[-1]


def events(trace: ProfileData) -> Iterator[ProfileEvent]:
    """Yields the kernels of all GPUs, or the operations of the CPU where the trace has no GPU."""
    planes = [plane for plane in trace.planes if plane.name.startswith('/device:GPU')]
    for plane in planes:
        for line in plane.lines:
            if not line.name.startswith(NOT_KERNELS):
                yield from line.events
    if not planes:
        for line in trace.find_plane_with_name('/host:CPU').lines:
            if line.name.startswith(('tf_XLA', 'XLA')):
                yield from (event for event in line.events if '::' not in event.name)


def largest(trace: ProfileData, count: int) -> list[tuple[str, int, float, float]]:
    """Returns (name, calls, milliseconds, share of all) of the kernels with the most time."""
    calls, milliseconds = collections.Counter(), collections.Counter()
    for event in events(trace):
        calls[event.name] += 1
        milliseconds[event.name] += event.duration_ns / 1e6
    total = milliseconds.total()
    return [(name, calls[name], ms, ms / total) for name, ms in milliseconds.most_common(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('workdir', type=Path, help='of a run that had profile_steps')
    parser.add_argument('--count', type=int, default=10, help='of kernels')
    args = parser.parse_args()
    path = newest_trace(args.workdir)
    rows = [
        [f'`{name[:70]}`', f'{calls}', f'{ms:.1f}', f'{share:.1%}']
        for name, calls, ms, share in largest(ProfileData.from_file(str(path)), args.count)
    ]
    if not rows:
        raise SystemExit(f'{path} has no kernels: no step was profiled.')
    print(markdown([], ['kernel', 'calls', 'ms in all', 'share'], rows))


if __name__ == '__main__':
    main()
