#!/usr/bin/env bash
# Measures and tests on one GPU what no CPU can show, and writes a Markdown report: gpu_report.py.
#
#   benchmarks/on_gpu.sh --wheels=FOLDER REPORT.md
#   benchmarks/on_gpu.sh --rehearse REPORT.md        the same on a CPU, with a tiny model
#
# For a machine that has jax with CUDA, PyTorch and transformers, but no network. Packages that it
# lacks come from FOLDER, which is filled where there is a network:
#   pip download --no-deps --only-binary=:all: --python-version=3.12 \
#     --platform=manylinux_2_28_x86_64 --platform=manylinux2014_x86_64 --dest=FOLDER \
#     array_record clu etils grain importlib_resources jaxtyping wadler_lindig ml_collections \
#     tensorboardX tensorflow_datasets tifffile cloudpickle more_itertools pytest iniconfig pluggy
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
