# make demo      the default experiment, end to end, with a report to look at
# make test      what CI runs: lint and the quick tests (TESTS=tests/test_NAME.py for some)
# make test-all  the slow tests as well
# make docs      the documentation as a site, build/site/index.html
# make bench     speed beside PyTorch (benchmarks/README.md); ARGS=--help for its options
# make gpu     what a GPU alone can show, in ten minutes, with the Python that has jax for it
#                (benchmarks/README.md); ARGS=--data=FILE, ARGS=--quick without one
# make setup     the environment alone (.venv)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# PyTorch's builds without CUDA, which the CPU's benchmark needs.
TORCH_INDEX := https://download.pytorch.org/whl/cpu

# glibc's malloc keeps devices on CPU waiting for each other: jemalloc, where it is installed
# (Debian and Ubuntu: libjemalloc2), saves a tenth of a train step.
LIBRARY := $(firstword $(wildcard /usr/lib/*/libjemalloc.so.2 /usr/lib64/libjemalloc.so.2))
JEMALLOC := $(if $(LIBRARY),LD_PRELOAD=$(LIBRARY) MALLOC_CONF=dirty_decay_ms:-1)

.PHONY: bench demo docs gpu setup test test-all

demo: $(VENV)/run.done
	$(JEMALLOC) $(BIN)/python -m launch --config=configs/smoothadv_digits.py --workdir=runs/demo

bench: $(VENV)/bench.done
	$(BIN)/python -m benchmarks $(ARGS)

gpu:
	$(PYTHON) -m benchmarks.gpu $(ARGS)

docs: $(VENV)/docs.done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

setup: $(VENV)/run.done

test: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow" $(TESTS)

test-all: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/pytest -n 2 --dist loadfile

$(VENV)/run.done: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 14) else f"$(PYTHON) is Python {v[0]}.{v[1]}; 3.11 to 3.14 is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/test.done: $(VENV)/run.done
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/docs.done: $(VENV)/run.done
	$(BIN)/pip install --quiet --editable '.[docs]'
	touch $@

# torchattacks pins a requests of 2021; what it needs is there.
$(VENV)/bench.done: $(VENV)/run.done
	$(BIN)/pip install --quiet --extra-index-url $(TORCH_INDEX) --editable '.[benchmark]'
	$(BIN)/pip install --quiet --no-deps 'torchattacks>=3.5'
	touch $@
