# The same commands that CI runs. PYTHON=python3.12 chooses another Python, PYTEST="-k word -x" what is tested. All tests
# are two runs of JOBS processes each: the second has a lab of SSH hosts in each process, and takes whole files, so that the
# tests of a file share their master. Its files start in alphabetical order, with the longest among the first.
.DELETE_ON_ERROR:
.PHONY: help run test lint docs man recording package bench chaos clean tools

BIN := .venv/bin
PYTEST ?=
JOBS ?= 2

help:
	@echo 'make run    a first look: four languages on this machine'
	@echo 'make test   every test (the lab of SSH hosts needs root; elsewhere its tests are skipped)'
	@echo 'make lint   ruff, mypy, changelog fragments, shellcheck'
	@echo 'make docs   the manual, into docs/_build/html'
	@echo 'make man    the man pages, into docs/man'
	@echo 'make recording  the session that the README shows, into docs/_static/demo.svg (needs root)'
	@echo 'make package  wheel and source distribution: built, checked, installed and tried on each Python that is here'
	@echo 'make bench  what things cost on this machine, beside others (needs root; BENCH=--short tries it)'
	@echo 'make chaos a long run with faults on the lab, and its checker (needs root; SEED=n repeats one)'
	@echo 'make clean  remove what the others made'

run: .venv/ready
	@scripts/demo.sh

# Debian packages: what the tests, the benchmarks and the chaos run need on this machine.
tools:
	scripts/setup-test-host.sh

test: tools .venv/ready-test
ifeq ($(PYTEST),)
	$(BIN)/python -m pytest -n $(JOBS) tests/pure tests/service tests/edge
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder tests/lab tests/whole
else
	$(BIN)/python -m pytest $(PYTEST)
endif

lint: .venv/ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/check_changelog.py
	shellcheck scripts/*.sh .ci/run tests/lab/*.sh
	shellcheck --shell=sh sshgrid/remote/*.sh

docs: .venv/ready-docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html
	$(BIN)/python scripts/check_pages.py docs/_build/html

man: .venv/ready-docs
	$(BIN)/python scripts/build_man.py

recording: tools .venv/ready-test
	$(BIN)/python scripts/record_demo.py

package: .venv/ready
	$(BIN)/python scripts/check_packages.py

BENCH ?=
bench: tools .venv/ready-test
	$(BIN)/python -m bench $(BENCH)

SEED ?= 1
chaos: tools .venv/ready-test
	$(BIN)/python -m tests.chaos --seed $(SEED) --jobs 500 --hosts 4 --clients 3 --minutes 8

clean:
	rm -rf .venv build docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A marker per set of packages: made again when the list of packages changes.
.venv/ready: pyproject.toml
	scripts/venv.sh
	@touch $@

.venv/ready-test: pyproject.toml
	scripts/venv.sh test,docs
	@touch $@

.venv/ready-docs: pyproject.toml
	scripts/venv.sh docs
	@touch $@
