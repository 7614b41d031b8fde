# SPDX-License-Identifier: GPL-3.0-or-later
# One command each, on a machine that has never seen the project; .ci/bootstrap installs what is missing.

SHELL  := /bin/bash
CONFIG ?= config/gatekeeper.toml
ARGS   ?=
PY     := .venv/bin/python
export PYTHON

.PHONY: help run test lint demo bench lock clean

help:  ## this list
	@sed -n 's/^\([a-z]*\): *## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

run:  ## the policy daemon and the milter, in the foreground (CONFIG=FILE)
	@.ci/bootstrap milter
	@# On a terminal Ctrl-C goes to gatekeeper alone, or make would call its clean end an error.
	@serve=".venv/bin/gatekeeper --config $$(.ci/config $(CONFIG)) run $(ARGS)"; [ -t 0 ] || exec $$serve; set -m; $$serve; exit $$?

test:  ## the tests (ARGS="-k greylist")
	@.ci/bootstrap milter postfix tests
	@$(PY) -m pytest $(ARGS)

lint:  ## ruff and mypy
	@.ci/bootstrap
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy

demo:  ## sessions through a private Postfix, and what happened to each
	@.ci/bootstrap milter postfix
	@$(PY) -m tests.lab.demo $(ARGS)

bench:  ## what a request and a message cost, beside the peers (ARGS=ROUNDS)
	@.ci/bootstrap milter
	@benchmarks/policy $(ARGS)
	@benchmarks/run $(ARGS)

lock:  ## requirements.lock from pyproject.toml
	@.ci/lock

clean:  ## what the other targets left behind, .venv included
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
