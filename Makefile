# `make help` lists what can be done. pip's own settings (its config file, PIP_* variables) stay as the user has them.

PYTHON ?= python3
EXTRAS ?= all,dev
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo install system check test mutants bench

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'PYTHON=$(PYTHON) makes the environment; EXTRAS=$(EXTRAS) are installed (EXTRAS=dev,ray where DALI has no wheels)'

demo: install ## train on handwritten digits, here and now, in a few minutes
	$(BIN)/python -m launcher demo

install: $(INSTALLED) ## make .venv with the versions of constraints.txt (about 7 GB); nothing to do when it is up to date

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

# SLURM and namespaces for tests/lab; on a machine without apt-get, or without root, those tests are skipped instead.
LAB := slurm-wlm munge iproute2 util-linux
system: ## install what tests/lab needs beside Python (Debian and Ubuntu, as root)
	@dpkg -s $(LAB) > /dev/null 2>&1 || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(LAB) > /dev/null; }

check: install ## lint, format, types, the arrows between packages, the examples in docstrings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --doctest-modules -q resnet_dist launcher cluster

# Tests that start nothing share the CPUs; those that start workers, clusters and hosts have the machine to themselves.
test: install ## all tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --durations 15 tests/unit tests/contracts
	$(BIN)/python -m pytest --durations 40 tests/distributed tests/lab tests/gpu

# Every test starts in a fork of one process that has run them all. Torch's threads would not survive that: hence one.
mutants: $(BIN)/mutmut ## how many small mistakes in the order, the crops, the schedule and LARS no unit test would notice
	rm -rf mutants
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results --all true | $(BIN)/python tests/mutants.py

$(BIN)/mutmut: $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e ".[mutants]"
	touch $@

bench: install ## benchmarks on this machine's CPU, and docs/benchmarks.md from what they found
	-$(BIN)/python -m benchmarks.training_cpu
	$(BIN)/python -m benchmarks.speed_keys
	-$(BIN)/python benchmarks/checkpoint_stall.py
	$(BIN)/python -m benchmarks.report
