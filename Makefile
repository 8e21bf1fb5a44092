# `make demo` and `make test` work in a fresh clone: they fill .venv first, once.
# PYTHON: by default the first of python3.11 and python3 that is 3.11 or newer and has venv.
PYTHON ?=
export PYTHON

hash = $(shell cat $(1) | cksum | cut -d' ' -f1)
RUNTIME := .venv/.installed-cpu-$(call hash,requirements/cpu.txt pyproject.toml)
TOOLS := .venv/.installed-dev-$(call hash,requirements/dev.txt requirements/cpu.txt pyproject.toml)

.PHONY: help demo test test-all lint clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(RUNTIME) ## run configs/quickstart.yaml from start to finish
	.venv/bin/datafree run configs/quickstart.yaml

test: $(TOOLS) ## the tests, without the slow ones
	.venv/bin/python -m pytest -m "not slow"

test-all: $(TOOLS) ## all tests
	.venv/bin/python -m pytest

lint: $(TOOLS) ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/mypy

clean: ## remove .venv and tool caches; results in cache/ and runs/ stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUNTIME):
	@requirements/install.sh cpu $@

$(TOOLS): $(RUNTIME)
	@requirements/install.sh dev $@
