# The two commands of a fresh machine: `make demo` and `make test`. Both create the virtual environment.
PYTHON ?= python3
VENV ?= $(if $(filter python3,$(PYTHON)),.venv,.venv-$(notdir $(PYTHON)))
PY := $(VENV)/bin/python
WORKERS ?= 2
STAMP := $(VENV)/.installed

.PHONY: help demo test check test-slow test-lowering bench gpu lint clean
help:
	@echo "make demo       synthetic subject -> avatar -> talking mp4 and report in runs/demo (about 6 minutes)"
	@echo "make test       the default test run (less with a warm cache)"
	@echo "make check      the quick loop"
	@echo "make test-slow  the tests that take minutes each"
	@echo "make test-lowering  the Triton kernels lowered through JAX for CUDA, without a GPU"
	@echo "make bench      every op on every back end; JSON in runs/bench.json"
	@echo "make gpu        a day with a GPU in 8 minutes, without a network; WHEELS= of tools/pack_wheels.sh"
	@echo "make lint       ruff"
	@echo "PYTHON=python3.12 chooses another interpreter (its environment is .venv-python3.12)"

$(STAMP): pyproject.toml setup.py Makefile $(wildcard constraints/*.txt) $(wildcard tkjax/ops/cpu/src/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "tkjax needs Python 3.11 or newer, but $(PYTHON) is older; name one with PYTHON=python3.11" >&2; exit 2; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@c=constraints/python$$($(PY) -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt; \
	if [ -f $$c ]; then c="-c $$c"; else c=""; fi; \
	set -x; $(PY) -m pip install $$c 'setuptools>=77' jax && \
	$(PY) -m pip install $$c --no-build-isolation -e '.[preprocess,eval,test]'
	touch $@

demo: $(STAMP)
	$(PY) launch.py --mode=demo --workdir=runs/demo

test: $(STAMP)
	$(PY) -m pytest -n $(WORKERS) --dist loadfile

check: $(STAMP)
	$(PY) -m pytest -n $(WORKERS) --dist loadfile -m 'not slow and not gpu and not heavy'

test-slow: $(STAMP)
	$(PY) -m pytest -m slow

# The plug-in teaches JAX to lower for CUDA; beside the environment, since inside it JAX would look for a GPU.
test-lowering: $(STAMP)
	v=$$($(PY) -c 'import jax; print(jax.__version__)'); \
	$(PY) -m pip install -q --no-deps --upgrade --target .cache/lowering jax-cuda13-plugin==$$v jax-triton
	PYTHONPATH=.cache/lowering $(PY) -m pytest -n $(WORKERS) --dist loadfile tests/ops -k triton

bench: $(STAMP)
	mkdir -p runs
	$(PY) -m benchmarks.ops --json runs/bench.json

# No network: over the Python that has JAX, from the folder WHEELS where it is there; else the environment as it is.
WHEELS ?= wheels
gpu:
	@if [ -d $(WHEELS) ]; then \
	  test -x .venv-gpu/bin/python || $(PYTHON) -m venv --system-site-packages .venv-gpu; \
	  .venv-gpu/bin/python -m pip install -q --no-index --find-links $(WHEELS) -r $(WHEELS)/requirements.txt || exit 1; \
	  py=.venv-gpu/bin/python; \
	elif [ -x $(PY) ]; then py=$(PY); else py=$(PYTHON); fi; \
	$$py -m benchmarks.gpu_day

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

clean:
	rm -rf .venv .venv-* runs .cache .pytest_cache .ruff_cache
