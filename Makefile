# Two commands: `make demo` maps a simulated region, `make test` passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
WORKERS ?= 2

.PHONY: demo test chaos lint train clean

demo: $(VENV)/.installed
	$(BIN)/inventory-engine demo --out $(DEMO)

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest -m "not chaos" -n $(WORKERS) --dist loadfile

chaos: $(VENV)/.installed
	$(BIN)/python -m pytest -m chaos

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

train: $(VENV)/.installed
	$(BIN)/inventory-engine train model_serving/weights/default

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	touch $@

clean:
	rm -rf $(VENV) $(DEMO) build *.egg-info
