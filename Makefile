# Every target sets up .venv first, where it is missing or older than setup.py or constraints.txt:
# `demo` with what a user installs, the others with what the tests need too.
#   make demo                     train, evaluate and draw a small detector on a demo set
#   make demo TASK=segmentation   the same for a segmentor
#   make demo TASK=classification   the same for a classifier, whose weights start a detector
#   make test                     the quick tests, some minutes on two cores
#   make test-all                 these and the slow ones, about an hour
#   make test-torch-latest        the quick tests on the newest torch, in .venv-torch-latest
#   make bench                    speed beside other libraries', over an hour; docs/performance.*
#   make gpu                      checks and speed on a GPU, 25 minutes; docs/performance-gpu.*
#   make lint                     formatting, style and types
#   make site                     the documentation as a site, in site/
#   make campaign                 kill 100 runs at random moments, resume, compare bit for bit

PYTHON ?= python3
TASK ?= detection
BIN := .venv/bin
LATEST := .venv-torch-latest
LATEST_TORCH := torch==2.14.1 torchvision==0.29.1
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

PREPARED := $(if $(wildcard .venv/installed),.venv/installed,.venv/installed-to-use)

.PHONY: demo test test-all test-torch-latest bench gpu lint site campaign setup

demo: $(PREPARED)
	$(BIN)/python tools/walkthrough.py $(TASK)

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

test-torch-latest: $(LATEST)/installed
	OMP_NUM_THREADS=1 $(LATEST)/bin/python -m pytest -n 2 --dist loadfile -m "not slow"

bench: setup
	$(BIN)/python -m benchmarks.speed --out docs/performance

gpu: setup
	$(BIN)/python -m benchmarks.gpu --out docs/performance-gpu

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# By itself it would ask PyPI whether there is a later pyright.
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

site: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

campaign: setup
	$(BIN)/python -m benchmarks.kills

setup: .venv/installed

.venv/installed: setup.py constraints.txt
	$(call install,.[test])

.venv/installed-to-use: setup.py constraints.txt
	$(call install,.)

$(LATEST)/installed: setup.py constraints.txt
	$(PYTHON) -m venv $(LATEST)
	grep -v '^torch' constraints.txt > $(LATEST)/constraints.txt
	$(LATEST)/bin/python $(PIP_INSTALL) -c $(LATEST)/constraints.txt -e ".[test]" $(LATEST_TORCH)
	$(call headless,$(LATEST)/bin/python)
	touch $(LATEST)/installed

# A line every 8 seconds while pip, which is silent in a pipe, downloads and unpacks.
define install
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 14) else \
	f"error: Python {v[0]}.{v[1]} is not supported; use 3.10 to 3.13, e.g. make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	@echo '$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e "$(1)"'
	@$(BIN)/python $(PIP_INSTALL) -c constraints.txt -e "$(1)" & pip=$$!; seconds=0; \
	while sleep 1; kill -0 $$pip 2>/dev/null; do \
		seconds=$$((seconds + 1)); \
		test $$((seconds % 8)) -gt 0 || \
		echo "  $$seconds s  installing: $$(du -sm .venv | cut -f1) MB in .venv"; \
	done; wait $$pip
	$(call headless,$(BIN)/python)
	touch $@
endef

# mmcv asks for opencv-python, which needs libGL; the headless build holds the same modules.
define headless
	$(1) -m pip uninstall --quiet --yes opencv-python opencv-python-headless
	$(1) $(PIP_INSTALL) -c constraints.txt opencv-python-headless
endef
