# SPDX-License-Identifier: GPL-3.0-or-later
# One command each, on a machine that has never seen the project; .ci/bootstrap installs what is missing.

SHELL  := /bin/bash
CONFIG ?= config/gatekeeper.toml
ARGS   ?=
# More at once than there are cores: most tests wait, for a service or for time to pass.
WORKERS ?= 6
PY     := .venv/bin/python
PARALLEL = -n $(WORKERS) --dist worksteal
export PYTHON

.PHONY: help run test check coverage lint matrix demo bench attack lock release clean

help:  ## this list
	@sed -n 's/^\([a-z]*\): *## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

run:  ## the policy daemon and the milter, in the foreground (CONFIG=FILE)
	@.ci/bootstrap milter
	@# On a terminal Ctrl-C goes to gatekeeper alone, or make would call its clean end an error.
	@serve=".venv/bin/gatekeeper --config $(CONFIG) run $(ARGS)"; [ -t 0 ] || exec $$serve; set -m; $$serve; exit $$?

test:  ## the tests (ARGS="-k greylist")
	@.ci/bootstrap milter postfix tests
	@$(PY) -m pytest $(PARALLEL) $(ARGS)

check:  ## lint, and the quick tests that start no service: about a minute
	@.ci/bootstrap
	@# Side by side, because the tests wait now and then; what lint says comes last. More workers would only import more.
	@said=$$(mktemp); $(MAKE) --no-print-directory lint >$$said 2>&1 & lint=$$!; \
	$(PY) -m pytest -n 2 --dist worksteal -m "not integration and not slow" $(ARGS); status=$$?; \
	wait $$lint || status=1; cat $$said; rm $$said; exit $$status

coverage:  ## the tests, and the branches that none of them takes
	@.ci/bootstrap milter postfix tests
	@.ci/coverage $(PARALLEL) $(ARGS)

lint:  ## ruff, mypy and codespell
	@.ci/bootstrap
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m codespell_lib
	@$(PY) -m mypy

matrix:  ## the tests that start no service, on each Python 3.11 to 3.14 that is installed
	@.ci/bootstrap milter
	@$(PY) -m tox $(ARGS)

demo:  ## sessions through a private Postfix, and what happened to each
	@.ci/bootstrap milter postfix
	@$(PY) -m tests.lab.demo $(ARGS)

bench:  ## what a request and a message cost, beside the peers (ARGS=ROUNDS)
	@.ci/bootstrap milter
	@benchmarks/policy $(ARGS)
	@benchmarks/run $(ARGS)

attack:  ## the service under load while all around it fails, and fuzzed; 20 minutes (ARGS="--minutes 1 kills fuzz")
	@.ci/bootstrap milter postfix tests
	@$(PY) -m tests.attack $(ARGS)

lock:  ## requirements.lock from pyproject.toml
	@.ci/lock

release:  ## a release of what is committed on main (VERSION=1.2.3); CONTRIBUTING.md says what has to be there
	@.ci/release $(VERSION)

clean:  ## what the other targets left behind, .venv included
	rm -rf .venv .tox build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
