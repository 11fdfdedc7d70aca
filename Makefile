# make demo      the default experiment, end to end, with a report to look at
# make test      what CI runs: lint and the quick tests
# make test-all  the slow tests as well
# make setup     the environment alone (.venv)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo setup test test-all

demo: $(VENV)/run.done
	$(BIN)/python -m launch --config=configs/smoothadv_digits.py --workdir=runs/demo

setup: $(VENV)/run.done

test: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

test-all: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/pytest -n 2 --dist loadfile

$(VENV)/run.done: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else f"$(PYTHON) is Python {v[0]}.{v[1]}; 3.11 or 3.12 is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/test.done: $(VENV)/run.done
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@
