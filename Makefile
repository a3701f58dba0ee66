# Every target sets up .venv first, where it is missing or older than setup.py.
#   make demo                     train, evaluate and draw a small detector on a demo set
#   make demo TASK=segmentation   the same for a segmentor
#   make demo TASK=classification   the same for a classifier, whose weights start a detector
#   make test                     the quick tests, some minutes on two cores
#   make test-all                 these and the slow ones, about an hour
#   make bench                    speed beside other libraries', over an hour; docs/performance.*
#   make lint                     formatting, style and types
#   make campaign                 kill 100 runs at random moments, resume, compare bit for bit

PYTHON ?= python3
TASK ?= detection
BIN := .venv/bin

.PHONY: demo test test-all bench lint campaign setup

demo: setup
	$(BIN)/python tools/walkthrough.py $(TASK)

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow

bench: setup
	$(BIN)/python -m benchmarks.speed --out docs/performance

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# By itself it would ask PyPI whether there is a later pyright.
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

campaign: setup
	$(BIN)/python -m benchmarks.kills

setup: .venv/installed

.venv/installed: setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 14) else \
	f"error: Python {v[0]}.{v[1]} is not supported; use 3.10 to 3.13, e.g. make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	# mmcv asks for opencv-python, which needs libGL; the headless build holds the same modules.
	$(BIN)/python -m pip uninstall --quiet --yes opencv-python opencv-python-headless
	$(BIN)/python -m pip install --quiet --disable-pip-version-check opencv-python-headless==4.12.0.88
	touch .venv/installed
