# The environment is made once, in .venv, and made up to date when pyproject.toml or constraints.txt change.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
DEMO := build/demo

.PHONY: help setup demo test test-fast test-full test-faults fuzz chromium test-page test-web triton-env test-triton ray-env test-ray test-oldest test-newest test-gpu bench-gpu docs lint types format check release clean
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
chromium:  ## install Chromium, if it is not there
	command -v chromium >/dev/null || { apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends chromium; }

test-page: chromium $(READY)  ## run the tests of the report's page in headless Chromium
	$(BIN)/python -m pytest -m browser

test-web: chromium $(READY)  ## run examples/browser in headless Chromium, with onnxruntime-web of npm
	npm install --prefix examples/browser --no-package-lock --no-audit --no-fund
	$(BIN)/python -m pytest tests/test_examples.py -k browser

# A Triton server with its Python backend, which takes no numpy 2. The wheel is for Linux on x86-64.
TRITON := .triton
TRITON_READY := $(TRITON)/.ready
TRITON_FOLDER := $(TRITON)/lib/python3.*/site-packages/pytriton/tritonserver

triton-env: $(TRITON_READY)  ## make an environment with a Triton server, beside the usual one

$(TRITON_READY): pyproject.toml constraints.txt
	test -x $(TRITON)/bin/python || $(PYTHON) -m venv $(TRITON)
	grep -vE '^(grpcio|ml_dtypes|numpy|protobuf|tritonclient)==' constraints.txt > $(TRITON)/constraints.txt
	$(TRITON)/bin/python -m pip install --quiet --constraint $(TRITON)/constraints.txt nvidia-pytriton==0.7.0 'numpy<2' onnx pytest --editable '.[cpu,serve]'
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

# The ends of the ranges in pyproject.toml, in environments of their own. torch is pinned in both: see above.
RESOLUTION_oldest := lowest-direct
RESOLUTION_newest := highest

.oldest/.ready .newest/.ready: .%/.ready: pyproject.toml constraints.txt
	test -x .$*/bin/python || $(PYTHON) -m venv .$*
	.$*/bin/python -m pip install --quiet $$(grep '^uv==' constraints.txt)
	grep '^torch==' constraints.txt > .$*/torch.txt
	.$*/bin/uv pip compile --quiet --resolution $(RESOLUTION_$*) --extra dev --constraint .$*/torch.txt --output-file .$*/requirements.txt pyproject.toml
	.$*/bin/uv pip install --quiet --python .$*/bin/python --requirement .$*/requirements.txt --no-deps --editable .
	touch $@

test-oldest: .oldest/.ready  ## run the fast tests with the oldest packages that pyproject.toml allows
	.oldest/bin/python -m pytest $(TWICE) -m "not slow"

test-newest: .newest/.ready  ## run the fast tests with the newest packages that pyproject.toml allows
	.newest/bin/python -m pytest $(TWICE) -m "not slow"

# GPU_PYTHON=python3 takes an environment of your own, which has what is to be tried: onnxruntime-gpu, tensorrt.
test-gpu: $(if $(GPU_PYTHON),,$(READY))  ## run the tests that need a CUDA device
	$(or $(GPU_PYTHON),$(BIN)/python) -m pytest tests/gpu

bench-gpu: $(if $(GPU_PYTHON),,$(READY))  ## time PyTorch, ONNX Runtime and engines on this GPU, into benchmarks/results
	$(or $(GPU_PYTHON),$(BIN)/python) -m benchmarks.gpu floor speed bundle --work build/bench-gpu
	PYTHONPATH=. $(or $(GPU_PYTHON),$(BIN)/python) benchmarks/overhead.py --json benchmarks/results/overhead-gpu.json

docs: $(READY)  ## build the site of the docs into build/site, and fail on a broken link
	$(BIN)/zensical build --strict
	@echo "site: build/site/index.html; to look at it: $(BIN)/zensical serve"

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

# All that a release has, see RELEASING.md: the sdist and the wheel that is built from it; what a service installs
# ([cpu,hub,serve]) and what one machine installs for everything ([all,data,hub,openvino]), with hashes; and lists of these
# as SBOMs. The service's packages are installed by their hashes, beside the wheel, and vaedeploy runs there.
RELEASE := .release
VERSION = $$(sed -n 's/^__version__ = "\(.*\)"$$/\1/p' vaedeploy/version.py)

release:  ## build what a release has, into dist, and check it: TAG=v1.2.3 must be the version
	test -z "$(TAG)" || test "$(TAG)" = "v$(VERSION)"
	grep -q "^## $(VERSION) $(if $(TAG),([0-9-]*)$$)" CHANGELOG.md
	rm -rf dist $(RELEASE)
	$(PYTHON) -m venv $(RELEASE)/tools
	$(RELEASE)/tools/bin/python -m pip install --quiet --constraint constraints.txt build cyclonedx-bom twine uv
	$(RELEASE)/tools/bin/python -m build --outdir dist
	$(RELEASE)/tools/bin/twine check --strict dist/*
	$(COMPILE) $(foreach extra,cpu hub serve,--extra $(extra)) --output-file dist/requirements-service.txt pyproject.toml
	$(COMPILE) $(foreach extra,all data hub openvino,--extra $(extra)) --output-file dist/requirements-all.txt pyproject.toml
	$(PYTHON) -m venv $(RELEASE)/service
	$(RELEASE)/service/bin/python -m pip install --quiet --require-hashes --requirement dist/requirements-service.txt
	$(RELEASE)/service/bin/python -m pip install --quiet --no-deps dist/*.whl
	$(RELEASE)/service/bin/vaedeploy doctor
	$(RELEASE)/service/bin/python -m pip uninstall --quiet --yes pip setuptools
	$(RELEASE)/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file dist/sbom-service.json $(RELEASE)/service/bin/python
	$(RELEASE)/tools/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --output-file dist/sbom-all.json dist/requirements-all.txt
	awk '/^## /{n++} n == 1' CHANGELOG.md > $(RELEASE)/notes.md
	cd dist && sha256sum * > SHA256SUMS && cat SHA256SUMS

COMPILE = $(RELEASE)/tools/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --constraint constraints.txt

clean:  ## remove what was built; the environment stays
	rm -rf build dist $(RELEASE) .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
