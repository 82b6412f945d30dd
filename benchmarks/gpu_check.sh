#!/usr/bin/env bash
# All checks that need a GPU, in one run: bash benchmarks/gpu_check.sh OUT [--parts ...] [--total SECONDS]
#
# Python 3.12 with torch 2.11, transformers 5.17, peft, accelerate, sentence-transformers 6.0, pandas, pyarrow, rich,
# typer, pytest, pytest-timeout, hypothesis. It needs no network and installs nothing. Optional, on
# PYTHONPATH, for cp312: datasets with dill and multiprocess (sentence-transformers' trainer needs them); bm25s and
# PyStemmer for sparse and hybrid methods. With their wheels in .whl/, run before:
#   python -m pip install --no-index --no-deps --target /tmp/site .whl/*.whl && export PYTHONPATH=/tmp/site
# Without a GPU it runs end to end with tiny shapes, and the timings mean nothing.
set -eu
cd "$(dirname "$0")/.."
export PYTHONPATH=".${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
export TOKENIZERS_PARALLELISM=true RETBENCH_CACHE="${RETBENCH_CACHE:-$(mktemp -d)}" PYTORCH_NVML_BASED_CUDA_CHECK=1
exec "${PYTHON:-python3}" -m benchmarks.gpu_check "$@"
