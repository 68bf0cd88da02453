# The same commands that CI runs. PYTHON=python3.12 selects another Python, PYTEST="-k word -x" selects tests. `make test`
# runs pytest twice with JOBS processes each. In the second run each process has its own lab of SSH hosts, and runs whole
# files, so that the tests of a file share a master. Files start in alphabetical order; the longest are among the first.
.DELETE_ON_ERROR:
.PHONY: help run test lint docs man recording package bench chaos clean tools

BIN := .venv/bin
PYTEST ?=
JOBS ?= 2

help:
	@echo 'make run        run a program in four languages on this machine'
	@echo 'make test       run all tests (without root, tests with SSH hosts are skipped; PYTEST=tests/pure: only these)'
	@echo 'make lint       run ruff, mypy and shellcheck, and check the changelog fragments'
	@echo 'make docs       build the manual into docs/_build/html'
	@echo 'make man        write the man pages into docs/man'
	@echo 'make recording  record the session of the README into docs/_static/demo.svg (needs root)'
	@echo 'make package    build wheel and source distribution, check them, and install them with each Python found'
	@echo 'make bench      measure sshgrid and other tools on this machine (needs root; BENCH=--short: quick)'
	@echo 'make chaos      run jobs for 8 minutes while hosts and masters fail, and check them (needs root; SEED=n)'
	@echo 'make clean      remove all files that these targets create'

run: .venv/ready
	@scripts/demo.sh

# Installs the Debian packages that the tests, the benchmarks and the chaos run need.
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

# One marker file for each set of packages; out of date when pyproject.toml changes.
.venv/ready: pyproject.toml
	scripts/venv.sh
	@touch $@

.venv/ready-test: pyproject.toml
	scripts/venv.sh test,docs
	@touch $@

.venv/ready-docs: pyproject.toml
	scripts/venv.sh docs
	@touch $@
