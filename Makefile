# The environment is made once, in .venv, and made up to date when pyproject.toml or constraints.txt change.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
DEMO := build/demo

.PHONY: help setup demo test test-fast test-full test-faults fuzz test-page triton-env test-triton ray-env test-ray test-gpu bench-gpu lint types format check clean
.DEFAULT_GOAL := help

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make the environment

# torch comes first and by its exact version: a range would let pip take a newer build, with gigabytes of CUDA.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)  ## export the VAE that the package carries, verify it, encode and decode a photograph
	$(BIN)/vaedeploy export demo --out $(DEMO) --force
	$(BIN)/python tools/write_photo.py $(DEMO)-photo.png
	$(BIN)/vaedeploy encode $(DEMO) $(DEMO)-photo.png -o $(DEMO)-photo.safetensors
	$(BIN)/vaedeploy decode $(DEMO) $(DEMO)-photo.safetensors -o $(DEMO)-photo-decoded.png
	@echo
	@echo "bundle:  $(DEMO)"
	@echo "photo:   $(DEMO)-photo.png"
	@echo "decoded: $(DEMO)-photo-decoded.png"

# Two processes: each takes up to 4 GB where it exports a model of full size.
TWICE := -n 2 --dist worksteal

test: $(READY)  ## run every test
	$(BIN)/python -m pytest $(TWICE)

test-fast: $(READY)  ## run the tests that take no more than seconds
	$(BIN)/python -m pytest $(TWICE) -m "not slow"

test-full: $(READY)  ## run every test, and verify models of full size at every shape, up to 512x512
	$(BIN)/python -m pytest $(TWICE) --full

FAULTS := tests/bundle/test_crashes.py tests/bundle/test_opening.py tests/runtime/test_replaced.py

test-faults: $(READY)  ## look for faults at every point, and not at some: see docs/reliability.md
	$(BIN)/python -m pytest --full $(FAULTS)

# More of what these tests try at each run: CASES=20000 SEED=7.
fuzz: $(READY)  ## open 40,000 files as strangers make them, and send a server 20,000 bodies, of another seed each day
	VAEDEPLOY_FUZZ_CASES=$(or $(CASES),20000) VAEDEPLOY_FUZZ_SEED=$(or $(SEED),$(shell date +%Y%m%d)) $(BIN)/python -m pytest tests/test_fuzz.py tests/source/test_broken_weights.py tests/serve/test_fuzz.py

# Debian's: browsers that packages of Python bring are hundreds of megabytes.
test-page: $(READY)  ## run the tests of the report's page in headless Chromium, which is installed if it is not there
	command -v chromium >/dev/null || apt-get install --yes --no-install-recommends chromium
	$(BIN)/python -m pytest -m browser

# A Triton server with its Python backend, which takes no numpy 2. The wheel is for Linux on x86-64.
TRITON := .triton
TRITON_READY := $(TRITON)/.ready
TRITON_FOLDER := $(TRITON)/lib/python3.*/site-packages/pytriton/tritonserver

triton-env: $(TRITON_READY)  ## make an environment with a Triton server, beside the usual one

$(TRITON_READY): pyproject.toml constraints.txt
	test -x $(TRITON)/bin/python || $(PYTHON) -m venv $(TRITON)
	grep -vE '^(grpcio|ml_dtypes|numpy|protobuf|tritonclient)==' constraints.txt > $(TRITON)/constraints.txt
	$(TRITON)/bin/python -m pip install --quiet --constraint $(TRITON)/constraints.txt nvidia-pytriton==0.7.0 'numpy<2' onnx pytest --editable '.[cpu]'
	$(TRITON)/bin/python -m pip install --quiet --no-deps --upgrade --target $(TRITON)/numpy2 $$(grep '^numpy==' constraints.txt)
	cp $(TRITON_FOLDER)/python_backend_stubs/$$($(TRITON)/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')/triton_python_backend_stub $(TRITON_FOLDER)/backends/python/
	touch $@

test-triton:  ## run the tests in a Triton server; where it cannot be installed they are skipped, and say so
	$(MAKE) $(TRITON_READY) || echo "There is no environment with a Triton server: the tests are skipped."
	$$(test -e $(TRITON_READY) && echo $(TRITON)/bin/python || echo $(BIN)/python) -m pytest tests/triton

# An environment with Ray, which takes 240 MB, and without PyTorch.
RAY := .ray
RAY_READY := $(RAY)/.ready

ray-env: $(RAY_READY)  ## make an environment with Ray, beside the usual one

$(RAY_READY): pyproject.toml constraints.txt
	test -x $(RAY)/bin/python || $(PYTHON) -m venv $(RAY)
	$(RAY)/bin/python -m pip install --quiet --constraint constraints.txt onnx pytest ray==2.60.0 --editable '.[cpu,ray]'
	touch $@

test-ray:  ## run the tests in clusters of Ray, with 30 kills; where it cannot be installed they are skipped, and say so
	$(MAKE) $(RAY_READY) || echo "There is no environment with Ray: the tests are skipped."
	$$(test -e $(RAY_READY) && echo $(RAY)/bin/python || echo $(BIN)/python) -m pytest --full tests/ray

# GPU_PYTHON=python3 takes an environment of your own, which has what is to be tried: onnxruntime-gpu, tensorrt.
test-gpu: $(if $(GPU_PYTHON),,$(READY))  ## run the tests that need a CUDA device
	$(or $(GPU_PYTHON),$(BIN)/python) -m pytest tests/gpu

bench-gpu: $(if $(GPU_PYTHON),,$(READY))  ## time PyTorch, ONNX Runtime and engines on this GPU, into benchmarks/results
	$(or $(GPU_PYTHON),$(BIN)/python) -m benchmarks.gpu floor speed bundle --work build/bench-gpu
	PYTHONPATH=. $(or $(GPU_PYTHON),$(BIN)/python) benchmarks/overhead.py --json benchmarks/results/overhead-gpu.json

lint: $(READY)  ## check style and import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

types: $(READY)  ## check types
	$(BIN)/mypy

format: $(READY)  ## bring the code into the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

check: lint types test  ## lint, types and tests

clean:  ## remove what was built; the environment stays
	rm -rf build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
