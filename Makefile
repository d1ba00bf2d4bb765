# `make` alone lists the targets. Needs Python 3.11 to 3.13 and Git; PYTHON= names another interpreter.

PYTHON ?= python3
ARGS ?=
VENV := .venv
INSTALLED := $(VENV)/installed
BOOTSTRAP := $(VENV)/bootstrap
UV := $(or $(shell command -v uv 2>/dev/null),$(BOOTSTRAP)/bin/uv)
# Each file as a whole to one of several processes, in the order that conftest.py says.
DISTRIBUTED := --durations=10 --dist=loadfile --no-loadscope-reorder
PYTEST := $(VENV)/bin/pytest $(DISTRIBUTED)
# It marks lines in our own code only; coverage.py traces all that runs, and doubles the time of the tests.
SLIPCOVER := $(VENV)/bin/python -m slipcover
# What `make test-services` needs on top: program, and the Debian package that brings it.
SERVICES := pg_ctlcluster:postgresql pgbouncer:pgbouncer sshd:openssh-server haproxy:haproxy cloud-init:cloud-init git-lfs:git-lfs dockerd:docker.io debootstrap:debootstrap chromium:chromium chromedriver:chromium-driver promtool:prometheus redis-server:redis-server docker-compose:docker-compose busybox:busybox-static ip:iproute2 iptables:iptables curl:curl

MAKEFLAGS += --no-print-directory
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# What is compiled is kept, though containers often say otherwise: each test's processes would compile it anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' Makefile | awk -F': ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

.PHONY: demo
demo: $(INSTALLED) ## the whole loop on this machine; ARGS="--once --json" ends after the first model
	@$(VENV)/bin/orchestrator demo $(ARGS)

.PHONY: serve
serve: $(INSTALLED) ## Dagster's UI and daemon, for the settings in the environment or .env
	@$(VENV)/bin/orchestrator serve $(ARGS)

.PHONY: test
test: $(INSTALLED) ## all tests that need Python and Git only, with line coverage
	@$(SLIPCOVER) --source orchestrator --json --out .coverage.json -m pytest $(DISTRIBUTED) \
	  -m "not services and not packaging and not matrix" --numprocesses=3 $(ARGS)
	@$(SLIPCOVER) --merge .coverage.json --out .coverage.json --skip-covered --fail-under 85

.PHONY: test-services
test-services: $(INSTALLED) debian-packages ## the tests that need Debian packages, or minutes; installs the packages as root
	@$(PYTEST) -m "services and not matrix" --numprocesses=3 $(ARGS)

.PHONY: test-matrix
test-matrix: $(INSTALLED) debian-packages ## every fault in every phase of a run, and what takes minutes: an hour and a half
	@$(PYTEST) -m matrix $(ARGS)

.PHONY: image-check
image-check: $(INSTALLED) ## install what the Dockerfile installs, import all of it, start it and stop it
	@UV="$(UV)" $(PYTEST) orchestrator_tests/packaging/test_image.py $(ARGS)

.PHONY: wheel-check
wheel-check: $(INSTALLED) ## build the wheel, install it alone, and serve a pipeline that stands elsewhere
	@UV="$(UV)" $(PYTEST) orchestrator_tests/packaging/test_wheel.py $(ARGS)

.PHONY: import-time
import-time: $(INSTALLED) ## seconds and memory that importing the code location takes; ARGS="--runs 20"
	@$(VENV)/bin/python -m benchmarks.import_time $(ARGS)

.PHONY: chaos
chaos: $(INSTALLED) ## break the running stack in every way and check that nothing leaks or lies; N=100 SEED=7
	@$(VENV)/bin/python -m orchestrator_sandbox.chaos --faults $(or $(N),100) $(if $(SEED),--seed $(SEED)) $(ARGS)

.PHONY: lint
lint: $(INSTALLED) ## style, types, the layers of imports, the declared dependencies, and each pipeline's defs.yaml
	@$(VENV)/bin/ruff check
	@$(VENV)/bin/ruff format --check
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports
	@$(VENV)/bin/deptry orchestrator
	@$(VENV)/bin/python -m orchestrator.pipeline.check_defs

.PHONY: lock
lock: $(INSTALLED) ## renew requirements.lock from pyproject.toml
	@test -x "$(UV)" || { echo "make lock needs uv, which could not be installed here" >&2; exit 1; }
	@"$(UV)" pip compile --quiet --upgrade --universal --no-emit-index-url --generate-hashes --extra dev \
	  --custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

.PHONY: clean
clean: ## remove what make and the demo have made
	@rm -rf $(VENV) .demo .coverage.json .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist

# The environment, made once and renewed when the lock or the package's own data change. uv does it in
# seconds, and compiles it, which halves the start of every program here; where it cannot be had, or cannot
# reach what pip is configured for, pip does the same. Either way, hashes are checked: of uv, of all packages, and of
# what builds this one.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "This needs Python 3.11 to 3.13; $(PYTHON) is `$(PYTHON) --version 2>&1`. Name another: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@rm -f $@
	@test -x $(VENV)/bin/python || { echo "Making $(VENV)"; $(PYTHON) -m venv --clear $(VENV); } || { \
	  echo "Python's venv module does not work; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BOOTSTRAP)/bin/pip || $(PYTHON) -m venv --clear $(BOOTSTRAP)
	@test -x "$(UV)" || { sed -n '/^uv==/,/[^\\]$$/p' requirements.lock >$(BOOTSTRAP)/uv.txt \
	  && $(BOOTSTRAP)/bin/pip install --quiet --require-hashes --requirement $(BOOTSTRAP)/uv.txt; } \
	  || echo "uv cannot be had; pip installs, which takes longer"
	@echo "Installing requirements.lock"
	@{ test -x "$(UV)" \
	  && "$(UV)" pip sync --quiet --compile-bytecode --python $(VENV)/bin/python --require-hashes requirements.lock \
	  && "$(UV)" pip install --quiet --python $(VENV)/bin/python --no-deps \
	    --build-constraint requirements.lock --editable .; } \
	|| { pip="$(BOOTSTRAP)/bin/pip --python $(VENV)/bin/python install --quiet" \
	  && $$pip --no-deps --require-hashes --requirement requirements.lock && $$pip --no-deps --no-build-isolation --editable .; }
	@touch $@

.PHONY: debian-packages
debian-packages:
	@missing=; for need in $(SERVICES); do \
	  PATH="$$PATH:/usr/sbin" command -v $${need%%:*} >/dev/null || missing="$$missing $${need#*:}"; \
	done; \
	test -z "$$missing" || { \
	  if [ "`id -u`" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing$$missing"; \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null; \
	  else \
	    echo "These tests need Debian packages that are missing:$$missing (sudo apt-get install$$missing)" >&2; exit 1; \
	  fi; }
