# make demo   sets everything up and scores six recordings
# make test   sets everything up and runs the fast tests
# make test-all  runs the thorough tests as well: pages, browser, fault injection, fuzzing, processes, mutations
# make peers  adds PyTorch and the original toolkits, and runs the comparisons with them
# make bench  times everything beside PyTorch, ONNX Runtime, OpenVINO in an environment of its own; BENCH="--quick": less
# make slow   runs the long tests: ten minutes of fuzzing
# make docs   builds the documentation into build/site
# make dist   builds wheel and sdist into dist, and checks them
# make browser  installs what the pages' tests need beside: Debian's Chromium, and axe-core and onnxruntime-web from npm
# make lint   format, lint, types, import layers
#
# Another Python: make test PYTHON=python3.13 VENV=.venv-latest
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check
CONSTRAINTS = $(shell $(RUN) -c 'import sys; print("constraints-py311.txt" if sys.version_info < (3, 12) else "constraints-latest.txt")')
TORCH_VERSION := 2.13.0
OPENVINO_VERSION := 2026.4.1
FLAXSPEAKER_VERSION := 0.4.0
BENCH :=

.PHONY: demo test test-all peers bench slow browser lint docs dist clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo-ready
	$(RUN) examples/demo.py

test: $(VENV)/.test-ready
	$(RUN) -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow and not thorough and not peers"

test-all: $(VENV)/.test-ready
	$(RUN) -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow and not peers"

peers: $(VENV)/.peers-ready
	$(RUN) -m pytest -m "peers and not slow"

# On an idle machine; docs/speed.md says how to read it.
bench:
	$(MAKE) --no-print-directory VENV=.venv-bench .venv-bench/.bench-ready
	.venv-bench/bin/python -m benchmarks.speed $(BENCH)

slow: $(VENV)/.test-ready
	$(RUN) -m pytest -n 0 -m slow

# Without them these tests skip and say so.
browser:
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null
	test -e .venv/web/node_modules/onnxruntime-web || npm install --silent --prefix .venv/web onnxruntime-web@1
	test -e .venv/axe/node_modules/axe-core/axe.min.js || npm install --silent --prefix .venv/axe axe-core@4

lint: $(VENV)/.lint-ready
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

docs: $(VENV)/.docs-ready
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

# The wheel is built from the source archive, so that this shows both.
dist: $(VENV)/.lint-ready $(VENV)/.test-ready
	rm -rf dist
	$(RUN) -m build --outdir dist .
	DIST_FOLDER=dist $(RUN) -m pytest -n 0 -m "slow or not slow" tests/test_dist.py tests/test_typing.py

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name it: make demo PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -qq -U "pip>=25.1"

$(VENV)/.demo-ready: pyproject.toml | $(VENV)/bin/python
	$(PIP) install -qq -c $(CONSTRAINTS) -e .
	touch $@

$(VENV)/.test-ready: pyproject.toml | $(VENV)/bin/python
	$(PIP) install -qq -c $(CONSTRAINTS) -e . --group test
	touch $@

$(VENV)/.lint-ready: pyproject.toml | $(VENV)/bin/python
	$(PIP) install -qq -c $(CONSTRAINTS) -e . --group lint
	touch $@

$(VENV)/.docs-ready: pyproject.toml | $(VENV)/bin/python
	$(PIP) install -qq -c $(CONSTRAINTS) -e . --group docs
	touch $@

# On Linux plain torch comes with CUDA, several GB; where torch is installed already, it is kept. torchaudio serves its
# pure-Python parts only: its compiled libraries do not load beside a CPU build of torch.
$(VENV)/.peers-ready: requirements-peers.txt $(VENV)/.test-ready
	$(RUN) -c "import torch" 2>/dev/null || $(PIP) install -qq torch==$(TORCH_VERSION)
	$(PIP) install -qq "tqdm>=4" "huggingface_hub>=1" "ruamel.yaml<0.19" "joblib" "requests" "onnxruntime>=1.16"
	$(PIP) install -qq --no-deps -r requirements-peers.txt
	rm -f $(VENV)/lib/python*/site-packages/torchaudio/lib/*.so
	touch $@

# OpenVINO's one dependency beside NumPy reports its use to the makers; FlaxSpeaker's are what training needs.
$(VENV)/.bench-ready: requirements-bench.txt requirements-peers.txt $(VENV)/.demo-ready
	$(RUN) -c "import torch" 2>/dev/null || $(PIP) install -qq torch==$(TORCH_VERSION)
	$(PIP) install -qq -c $(CONSTRAINTS) -r requirements-bench.txt
	$(PIP) install -qq --no-deps -c requirements-peers.txt speakerlab speechbrain torchaudio HyperPyYAML \
		openvino==$(OPENVINO_VERSION) flaxspeaker==$(FLAXSPEAKER_VERSION)
	rm -f $(VENV)/lib/python*/site-packages/torchaudio/lib/*.so
	touch $@

clean:
	rm -rf .venv .venv-latest .venv-bench build dist *.egg-info
