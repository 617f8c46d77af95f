# `make help` lists the targets. pip's settings (its config file, PIP_* variables) are not changed.

PYTHON ?= python3
VENV := .venv
# What was installed is kept in a file: other EXTRAS are installed in addition, and no EXTRAS mean the same as before.
BEFORE := $(shell cat $(VENV)/.installed 2> /dev/null)
DEFAULT := all,dev
EXTRAS ?= $(or $(BEFORE),$(DEFAULT))
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo install system check test test-all mutants bench bench-views gpu-proof lessons docs audit

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'PYTHON=$(PYTHON) creates the environment; EXTRAS=$(EXTRAS) are installed (use EXTRAS=dev,ray where DALI has no wheels)'

demo: install ## train on handwritten digits, in a few minutes
	$(BIN)/python -m launcher demo

install: $(INSTALLED) ## create .venv with the versions in constraints.txt (about 8 GB), unless it is up to date

ifneq ($(EXTRAS),$(BEFORE))
.PHONY: $(INSTALLED)
endif
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[$(EXTRAS)]"
	echo '$(EXTRAS)' > $@

# SLURM and namespaces for tests/lab, and Fashion-MNIST. Without apt-get or root, install nothing: those tests are skipped.
LAB := slurm-wlm munge iproute2 util-linux dataset-fashion-mnist chromium
system: ## install the system packages that tests use (Debian and Ubuntu, as root)
	@dpkg -s $(LAB) > /dev/null 2>&1 || { apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(LAB) > /dev/null; }

check: install ## lint, format, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One thread per process, because the processes of --numprocesses share the CPUs.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
SHARED := --numprocesses auto --dist loadfile
# These tests run one at a time, because they wait for events with a time limit.
ALONE := (ray or lab or gpu or alone)

test: install ## unit and contract tests, doctests, one full run of each kind; at most 10 minutes on 2 cores
	$(PYTEST) $(SHARED) --durations 15 tests/unit tests/contracts
	$(PYTEST) --doctest-modules -q resnet_dist launcher cluster
	$(PYTEST) -m smoke --durations 10 tests/distributed

test-all: install ## all other tests; about 45 minutes on 2 cores
	$(PYTEST) $(SHARED) -m "not smoke and not $(ALONE)" --durations 20 tests/distributed tests/gpu
	$(PYTEST) -m "not smoke and $(ALONE)" --durations 30 tests/distributed tests/lab tests/gpu

# mutmut forks each test run from one process that has run all tests. Torch's threads do not survive a fork: use one.
mutants: $(BIN)/mutmut ## mutation tests of the sample order, crops, schedule and LARS
	rm -rf mutants
	OMP_NUM_THREADS=1 $(BIN)/mutmut run
	$(BIN)/mutmut results --all true | $(BIN)/python tests/mutants.py

$(BIN)/mutmut: $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e ".[mutants]"
	touch $@

# webdataset, MosaicML streaming and SPDL need other versions of packages: an environment of their own on top of ours.
PEERS := .peers
$(PEERS)/.installed: $(INSTALLED)
	$(BIN)/python -m venv $(PEERS)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/ours.pth
	$(PEERS)/bin/python -m pip install webdataset mosaicml-streaming spdl
	touch $@

# The numbers of rounds make it finish within 30 minutes on 2 cores. A goal that is missed does not end it.
bench: install $(PEERS)/.installed ## benchmarks of speed on a CPU, in half an hour; write docs/benchmarks.md (SPDL needs the system's FFmpeg libraries)
	-$(BIN)/python -m benchmarks.step
	-$(BIN)/python -m benchmarks.training_cpu --rounds 7
	-$(BIN)/python -m benchmarks.input --rounds 5 --python $(PEERS)/bin/python
	-$(BIN)/python -m benchmarks.speed_keys --rounds 7
	-$(BIN)/python benchmarks/checkpoint_stall.py
	-$(BIN)/python -m benchmarks.starts
	-$(BIN)/python -m benchmarks.recovery --kills 4 --turns 2 --pause 6
	$(BIN)/python -m benchmarks.page

bench-views: install ## benchmarks of watch, report and the time that is left, in about 7 minutes; write docs/benchmarks.md
	-$(BIN)/python -m benchmarks.watch
	-$(BIN)/python -m benchmarks.time_left
	-$(BIN)/python -m benchmarks.report_sizes
	$(BIN)/python -m benchmarks.page

# `quick` needs no environment of ours: torch and torchvision for PYTHON are enough.
SIZE ?= quick
gpu-proof: ## on GPUs: SIZE=quick (one, 8 minutes), hour (one), imagenet (eight; DATA=, STORAGE=); writes a result to send in
ifeq ($(SIZE),quick)
	PYTHON=$(PYTHON) bash benchmarks/gpu.sh $(ARGUMENTS)
else
	$(MAKE) install
	$(BIN)/python -m benchmarks.gpu_proof $(SIZE) $(if $(DATA),--data $(DATA)) $(if $(STORAGE),--storage $(STORAGE)) $(ARGUMENTS)
endif

lessons: install ## rewrite docs/lessons from its data; RUN=1 carries out the studies before (about an hour)
	$(BIN)/python -m benchmarks.lessons $(if $(RUN),--run)

docs: $(BIN)/mkdocs ## build the documentation site into site/, without a network; IMAGES=1 redraws its screenshots (minutes); python -m http.server -d site shows it
	$(if $(IMAGES),$(BIN)/python -m benchmarks.watch_images && $(BIN)/python -m benchmarks.report_images)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(BIN)/mkdocs: | $(INSTALLED)
	$(BIN)/python -m pip install -c constraints.txt -e ".[docs]"

audit: install ## known vulnerabilities of the installed packages (asks PyPI)
	$(BIN)/pip-audit --local --skip-editable
