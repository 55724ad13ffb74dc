# The two environments are made once: a stamp in each says from which pyproject.toml, constraints.txt and Makefile.
# Nothing below touches the network when its stamp is fresh and the model is pulled.

PYTHON ?= python3
SOURCES := pyproject.toml constraints.txt Makefile
RUNTIME := .venv/.installed
TESTING := .venv-test/.installed
PEERS := .venv-peers/.installed

.PHONY: help demo test test-large accuracy lint fix bench bench-quick peers clean

help:
	@echo "make demo        embed, compare and search real text with a real model (runtime dependencies only)"
	@echo "make test        the tests that take seconds"
	@echo "make test-large  the tests of real size, and of the wheel in an empty environment"
	@echo "make accuracy    record, quantize, measure and judge all-MiniLM-L6-v2; reports in build/accuracy"
	@echo "make lint        ruff and mypy;  make fix  lets ruff repair what it can"
	@echo "make bench-quick the 311M shape in float32 against sentence-transformers and the machine's limit"
	@echo "make bench       every peer, on all-MiniLM-L6-v2 unless BENCH says otherwise; see bench/README.md"
	@echo "make peers       the environment of the other libraries that make bench compares with"
	@echo "make clean       remove caches and build outputs; the environments .venv and .venv-test stay"

demo: $(RUNTIME)
	@.venv/bin/python -m bench.demo

test: $(TESTING)
	.venv-test/bin/python -m pytest -m "not large"

test-large: $(TESTING)
	.venv-test/bin/python -m pytest -m large

accuracy: $(TESTING)
	.ci/accuracy

lint: $(TESTING)
	.venv-test/bin/ruff check
	.venv-test/bin/ruff format --check
	.venv-test/bin/mypy

fix: $(TESTING)
	.venv-test/bin/ruff check --fix
	.venv-test/bin/ruff format

bench: $(TESTING) $(PEERS)
	.venv-test/bin/python -m bench.run $(BENCH)

bench-quick: $(TESTING)
	@.venv-test/bin/python -m bench.quick $(BENCH)

peers: $(PEERS)

clean:
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find edge_embed bench tests -type d -name __pycache__ -prune -exec rm -rf {} +

$(RUNTIME): $(SOURCES)
	@$(require_python)
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

# optimum-intel asks for torchvision, and so for gigabytes of CUDA, which nothing here imports: hence --no-deps.
$(TESTING): $(SOURCES)
	@$(require_python)
	$(PYTHON) -m venv .venv-test
	.venv-test/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	.venv-test/bin/python -m pip install --quiet --constraint constraints.txt --no-deps optimum optimum-intel
	@touch $@

# Libraries that need other versions than ours. light-embed and embed_anything ask for versions that the rest
# excludes, and run with these: hence --no-deps.
$(PEERS): bench/constraints-peers.txt Makefile
	@$(require_python)
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --constraint bench/constraints-peers.txt \
		torch 'sentence-transformers[onnx]' onnxruntime onnx fastembed gguf xllamacpp
	.venv-peers/bin/python -m pip install --quiet --constraint bench/constraints-peers.txt --no-deps \
		light-embed embed_anything
	@touch $@

# Written for any Python, so that an old one can still say what is wrong with it.
define require_python
$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "edge_embed needs Python 3.11 or newer, and $(PYTHON) is %d.%d; try: make PYTHON=python3.12" % sys.version_info[:2])'
endef
