# One virtual environment, made on first use, serves every target.
#   make demo    train on generated scenes, build a gallery, search it, leave demo/results.png
#   make test    the whole test suite          make lint   ruff and mypy
#   make sanitize  the C++ tests under ASan and UBSan (needs GCC)
#   make bench   benches of this machine's CPU make sass   what the GPU kernels compile to (no GPU)
#   make peers   environments of the engines that `make bench` compares searches with (6 GB)
#   make gpu     on a machine with a GPU: its tests and benches, into $OUT (bench/gpu.py)
#   make gpu-full PART=1    what takes longer, parts 1 to 6         make tune  autotune for its GPU
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
export TOKENIZERS_PARALLELISM := false

.PHONY: demo test sanitize lint format bench peers sass gpu gpu-full tune clean

$(READY): pyproject.toml $(wildcard csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "divse needs Python 3.11 or newer, got " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -e ".[dev]"
	@touch $@

demo: $(READY)
	$(BIN)/python examples/demo.py --out demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

sanitize: $(READY)
	PYTHON=$(BIN)/python WORKERS=$(WORKERS) csrc/sanitize.sh

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python bench/bench_score.py
	$(BIN)/python bench/bench_search.py --sizes 10000 100000 --venvs $(VENV)-peers
	$(BIN)/python bench/bench_cpu.py --sizes 10000 100000

peers:
	PYTHON=$(PYTHON) bench/peers/install.sh $(VENV)-peers

sass: $(READY)
	$(BIN)/python bench/sass.py

# These use the machine's own Python: a machine with a GPU often has torch and no network.
HERE := PYTHONPATH="$(CURDIR):$(CURDIR)/kernels:$$PYTHONPATH"
PART ?= 1

gpu:
	$(HERE) $(PYTHON) bench/gpu.py

gpu-full:
	$(HERE) $(PYTHON) bench/gpu.py --full --part $(PART)

tune:
	$(HERE) $(PYTHON) -m divse_kernels.autotune

clean:
	rm -rf $(VENV) $(VENV)-peers build demo runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
