# `make demo` and `make test` work in a fresh clone: they install into .venv first, once.
# PYTHON: the interpreter; default: the first usable of python3.11, python3.12, python3.13, python3.
# SET: cpu (default), base (no language model, no embedded models) or gpu (NVIDIA).
PYTHON ?=
SET ?=
export PYTHON SET
# Two processes, each with whole files: what a file's tests share is started once.
SIDE_BY_SIDE = -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: help install tools readers demo test test-all lint clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

install: ## install into .venv; PYTHON=python3.12 chooses the interpreter, SET=gpu or SET=base the packages
	@requirements/install.sh

tools: ## install into .venv, with the tools for tests and checks
	@requirements/install.sh dev

readers: ## install the readers of annotation tools into .venv-readers, for tests of formats
	$(or $(PYTHON),python3) -m venv .venv-readers
	.venv-readers/bin/python -m pip install -q --no-deps -r requirements/readers.txt

demo: install ## run configs/quickstart.yaml from start to finish
	.venv/bin/datafree run configs/quickstart.yaml

test: tools ## the tests, without the slow ones
	.venv/bin/python -m pytest -m "not slow" $(SIDE_BY_SIDE) --durations=20

test-all: tools ## all tests
	.venv/bin/python -m pytest $(SIDE_BY_SIDE) --durations=20

lint: tools ## formatting, lint (ruff) and types (mypy)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

clean: ## remove .venv, .venv-readers and tool caches; results in cache/ and runs/ stay
	rm -rf .venv .venv-readers .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
