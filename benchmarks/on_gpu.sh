#!/usr/bin/env bash
# Measures and tests on one GPU what no CPU can show, and writes a Markdown report: gpu_report.py.
#
#   benchmarks/on_gpu.sh --wheels=FOLDER REPORT.md
#   benchmarks/on_gpu.sh --rehearse REPORT.md        the same on a CPU, with a tiny model
#
# For a machine that has jax with CUDA, PyTorch and transformers, but no network. Packages that it
# lacks come from FOLDER, 9 MB, which the machine's version of Python fills where there is one:
#   python3.12 -m pip wheel --no-deps -w FOLDER absl-py array_record beartype cloudpickle clu etils \
#     grain importlib_resources iniconfig jaxtyping ml_collections more_itertools pluggy portpicker \
#     protobuf psutil pytest PyYAML tensorboardX tifffile tqdm wadler_lindig wrapt
#
# Environment: PYTHON=python3.
set -euo pipefail
cd "$(dirname "$0")/.."

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
arguments=() platforms=cuda,cpu
for argument; do
  case $argument in
    --wheels=*)
      "${PYTHON:-python3}" -m pip install --quiet --no-index --no-deps --target="$site" \
        "${argument#*=}"/*.whl
      ;;
    --rehearse) platforms=cpu arguments+=("$argument") ;;
    *) arguments+=("$argument") ;;
  esac
done

export JAX_PLATFORMS=$platforms PYTHONPATH=$PWD:$site${PYTHONPATH:+:$PYTHONPATH}
"${PYTHON:-python3}" benchmarks/gpu_report.py "${arguments[@]}"
