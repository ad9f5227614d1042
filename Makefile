# `make demo` and `make test` need nothing but Python 3.10 to 3.14; each makes the virtual environment it runs in.
# `make PYTHON=/path/to/python demo` chooses the interpreter.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
STOCK := $(VENV)/stock-ort
STOCK_VERSION := 1.23.2
# The stock engine for Python 3.14, for which 1.23.2 has no wheels.
STOCK_VERSION_314 := 1.31.1
TYPES := build/types
JAVASCRIPT := consumers/js
KERNELS := $(VENV)/.ready-kernels

FITS := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 14))
CANDIDATES := python3 python3.12 python3.11 python3.10 python3.13 python3.14

# The extra that installs the engine: the training build, where its last wheels fit the machine and the Python.
define ENGINE
import platform, sys
wheels = platform.machine() in ("x86_64", "AMD64") or sys.platform == "darwin"
print("ort-training" if wheels and sys.version_info < (3, 13) else "ort")
endef
export ENGINE
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
INSTALL_KERNELS = $(PIP) install --no-deps --no-build-isolation --editable kernels

.PHONY: demo test lint types bench kernels kernels-sanitize fuzz soak docs clean
.DELETE_ON_ERROR:

demo: $(READY) $(KERNELS)
	$(BIN)/ttac demo

# The slow tests run beside the others, in a second process; their output follows at the end.
test: $(READY) $(VENV)/.ready-eval $(KERNELS) $(STOCK)/.ready-$(STOCK_VERSION) $(JAVASCRIPT)/node_modules/.ready
	@mkdir -p build
	@export TTAC_STOCK_ORT="$(CURDIR)/$(STOCK)"; \
	$(BIN)/python -m pytest -q -p randomly -m slow > build/slow-tests.log 2>&1 & slow=$$!; \
	$(BIN)/python -m pytest -q -p randomly -m "not slow"; fast=$$?; \
	wait $$slow; slow=$$?; cat build/slow-tests.log; exit $$((fast || slow))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.support.prose_lint

# mypy sees the mapping of passes/ and runtime/ into the package only in an installed copy.
# The stubs of the last numpy for Python 3.10 want an element type for each array; those of later releases have a default.
types: $(READY)
	@if $(BIN)/python -c "import sys; sys.exit(sys.version_info >= (3, 11))"; then \
	  echo "make types: skipped, because the check needs Python 3.11 or later" >&2; exit; \
	fi; \
	set -ex; rm -rf build/lib build/bdist.* $(TYPES); \
	$(PIP) install --no-deps --no-build-isolation --target $(TYPES) .; \
	cd $(TYPES); ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p ttac; \
	cd ../..; $(BIN)/python -m mypy kernels/ttac_kernels kernels/build_library.py

# The native operators, compiled into kernels/ttac_kernels; needs a C++ compiler.
kernels: $(READY)
	$(INSTALL_KERNELS)
	@touch $(KERNELS)

# Random shapes of every operator under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.
kernels-sanitize: $(READY)
	$(BIN)/python kernels/build_library.py --sanitize $(or $(SHAPES),10000)

# Mutated models for MINUTES, from SEED; bad cases are kept in build/fuzz.
fuzz: $(READY)
	$(BIN)/python -m benchmarks.fuzz --minutes $(or $(MINUTES),5) --seed $(or $(SEED),0) --keep build/fuzz

# Kills, replacements and damaged files; minutes to hours by the sizes in SOAK, such as SOAK="--kills 100 --seconds 60".
soak: $(READY)
	$(BIN)/python -m benchmarks.soak $(SOAK)

bench: $(READY)
	$(BIN)/python -m benchmarks

# The site, in build/site; builds without a network, and its pages fetch nothing.
docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:
	rm -rf build $(VENV) $(JAVASCRIPT)/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): pyproject.toml
	@python="$(PYTHON)"; \
	for candidate in $${python:-$(CANDIDATES)}; do \
	  if "$$candidate" -c "$(FITS)" 2>/dev/null; then \
	    test -x $(BIN)/python || "$$candidate" -m venv $(VENV); exit; \
	  fi; \
	done; \
	echo "error: no Python 3.10 to 3.14 with the venv module was found" >&2; \
	echo "hint: install one, and name it: make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; exit 5
	$(PIP) install --editable ".[dev,view,$$($(BIN)/python -c "$$ENGINE")]"
	@touch $@

# Without a compiler the demo and the tests run on the engine's own operators.
$(KERNELS): $(READY) $(wildcard kernels/src/* kernels/*.* kernels/ttac_kernels/*.py)
	@if ! $(BIN)/python kernels/build_library.py --find-compiler; then \
	  echo "ttac-kernels: not built, because there is no C++ compiler" >&2; \
	elif ! $(INSTALL_KERNELS); then \
	  echo "ttac-kernels: not built, because its installation fails" >&2; \
	fi
	@touch $@

$(VENV)/.ready-docs: $(READY)
	$(PIP) install --editable '.[docs]'
	@touch $@

# The packages of `ttac eval`, and a second implementation of mAP; without them, the tests of errors and reports skip.
$(VENV)/.ready-eval: $(READY)
	$(PIP) install --editable '.[eval]' 'faster-coco-eval>=1.6,<2'
	@touch $@

# The engines and the compiler for the tests in JavaScript, which skip without them.
$(JAVASCRIPT)/node_modules/.ready: $(JAVASCRIPT)/package-lock.json
	@mkdir -p $(@D); \
	if ! command -v npm >/dev/null; then echo "make test: no npm, so the tests in JavaScript are skipped" >&2; exit; fi; \
	npm ci --no-progress --prefix $(JAVASCRIPT) && touch $@ || \
	  echo "make test: npm ci failed, so the tests in JavaScript are skipped" >&2

$(STOCK)/.ready-$(STOCK_VERSION): $(READY)
	rm -rf $(STOCK)
	$(PIP) install --no-deps --target $(STOCK) 'onnxruntime==$(STOCK_VERSION); python_version < "3.14"' \
	  'onnxruntime==$(STOCK_VERSION_314); python_version >= "3.14"'
	@touch $@
