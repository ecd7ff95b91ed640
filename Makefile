# What a newcomer types. Each target sets up first; setting up again takes about a second. Nothing but steps may live here:
# what they need is in tools/, requirements.lock and package-lock.json, and why is in docs/decisions/0040-build-and-setup.md.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: setup system build run test test-unprivileged test-asan test-tsan fuzz-asan qualify bench install lint lock clean distclean

# Debian's own interpreter, whatever python3 comes first on PATH: the extension and its headers belong to it.
SYSTEM_PYTHON := /usr/bin/python3
PYTHON := .venv/bin/python
ARGS ?=
PYTEST_ARGS ?=
# Whole files side by side (docs/decisions/0042-two-tests-at-once.md). 0: one after the other, in this process.
TEST_JOBS ?= 2
DESTDIR ?=
SOURCES := setup.py $(wildcard ext/*.pyx ext/*.pxd ext/*.h ext/__init__.py)

setup: build node_modules/.stamp

system:
	@$(SYSTEM_PYTHON) tools/system_packages.py

.venv/.stamp: requirements.lock pyproject.toml | system
	@if [ -e .venv ] && ! .venv/bin/python -c 'import sys; sys.exit(sys.base_prefix != "/usr")' 2>/dev/null; then \
	    echo "making .venv anew: it was not made from $(SYSTEM_PYTHON)"; rm -rf .venv; fi
	test -x $(PYTHON) || $(SYSTEM_PYTHON) -m venv .venv
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	WITHOUT_EXTENSION=1 $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

build: build/plain/.stamp

build/plain/.stamp: $(SOURCES) .venv/.stamp
	$(PYTHON) setup.py --quiet build_ext --parallel $(shell nproc) --inplace
	mkdir -p $(@D) && touch $@

# The sanitized modules stand beside the plain ones, never in their place. One build at a time: both write the same C.
build/asan/.stamp: SANITIZE := address,undefined
build/tsan/.stamp: SANITIZE := thread
build/asan/.stamp build/tsan/.stamp: $(SOURCES) .venv/.stamp
	mkdir -p $(@D)
	SANITIZE=$(SANITIZE) flock build/sanitized.lock $(PYTHON) setup.py --quiet build_ext --parallel $(shell nproc) \
	    --build-lib $(@D) --build-temp $(@D)/temp
	cp ext/__init__.py $(@D)/ext/
	touch $@

node_modules/.stamp: package.json package-lock.json | system
	npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@

run: setup
	@exec $(PYTHON) -m accelerator.demo $(ARGS)

test: setup
	$(PYTHON) -m pytest -m "not slow" -n $(TEST_JOBS) --dist loadfile $(PYTEST_ARGS)

# As any user, in a user namespace: what needs more (FRR's own user, real root) skips itself. /run is for `ip netns`.
test-unprivileged: setup
	unshare --user --map-root-user --net --mount sh -c 'mount -t tmpfs tmpfs /run && \
	exec $(PYTHON) -m pytest -m "not slow" -p no:cacheprovider tests/kernel $(PYTEST_ARGS)'

test-asan: setup build/asan/.stamp
	$(PYTHON) tools/sanitized_tests.py asan $(PYTEST_ARGS)

test-tsan: setup build/tsan/.stamp
	$(PYTHON) tools/sanitized_tests.py tsan $(PYTEST_ARGS)

fuzz-asan: setup build/asan/.stamp
	$(PYTHON) tools/sanitized_fuzz.py $(ARGS)

qualify: setup
	$(PYTHON) tools/qualify.py $(ARGS)

bench: setup
	$(PYTHON) benchmarks/run.py $(ARGS)

# Files only; docs/install.md says what follows. Needs to write to DESTDIR (empty: this machine), so sudo may be needed.
install: build
	$(PYTHON) tools/install.py --destdir "$(DESTDIR)"

lint: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy --strict accelerator

# Locks what pyproject.toml and package.json declare and keeps the versions locked already; ARGS=--upgrade moves them forward.
lock: .venv/.stamp
	test -x build/lock/bin/pip-compile || { $(SYSTEM_PYTHON) -m venv build/lock && build/lock/bin/pip install --quiet pip-tools; }
	cp requirements.lock build/requirements.lock
	build/lock/bin/pip-compile --quiet $(ARGS) --extra dev --allow-unsafe --generate-hashes --strip-extras --no-annotate --no-header \
	    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file build/requirements.lock pyproject.toml
	{ head -1 requirements.lock; grep -v "^# Made by" build/requirements.lock; } > build/requirements.new
	mv build/requirements.new requirements.lock
	npm install --package-lock-only --ignore-scripts --no-audit --no-fund

clean:
	rm -rf build ext/*.so ext/*.c .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

distclean: clean
	rm -rf .venv node_modules state *.egg-info
