#!/usr/bin/env bash
# One prepared run on a machine with a GPU: bash benchmarks/gpu_check.sh OUT [--parts ...] [--total SECONDS]
#
# Python 3.12 with torch 2.11, transformers 5.17, peft, accelerate, sentence-transformers 6.0, pandas, pyarrow, rich,
# typer, pytest, pytest-timeout, hypothesis. No network and nothing is installed. Three more wheels are wanted on
# PYTHONPATH, for cp312: datasets (sentence-transformers' trainer needs it) with dill and multiprocess; bm25s and
# PyStemmer only for sparse and hybrid methods. Whoever has them in .whl/ writes before:
#   python -m pip install --no-index --no-deps --target /tmp/site .whl/*.whl && export PYTHONPATH=/tmp/site
# Without a GPU it runs end to end with tiny shapes, and nothing is measured.
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
export TOKENIZERS_PARALLELISM=true RETBENCH_CACHE="${RETBENCH_CACHE:-$(mktemp -d)}" PYTORCH_NVML_BASED_CUDA_CHECK=1
exec "${PYTHON:-python3}" -m benchmarks.gpu_check "$@"
