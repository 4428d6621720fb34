# make demo   the whole pipeline on the built-in sample, from nothing
# make test   linter, type checker and tests
# make clean  remove what the demo made

PYTHON ?= python3
PY := .venv/bin/python

.PHONY: demo test clean

demo: .venv/installed
	$(PY) -m frozenfusion.sample demo/data
	$(PY) extract_features.py demo/data --cache demo/features.h5 --backbone efficientnet-b0 --weights random

test: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest

clean:
	rm -rf demo

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than Python 3.10: name a newer one, as in: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	.venv/bin/pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $@
