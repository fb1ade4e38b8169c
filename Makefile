# Two commands do everything: `make report` and `make test`. Both make $(VENV) when it is missing; a second call installs nothing.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.eedkit-installed
PROFILE ?= quick
SOURCES = $(shell find eedkit -name '*.py')
FASHION = $(foreach notebook,$(wildcard notebooks/0[1-6]_*.ipynb),--only $(basename $(notdir $(notebook))))

.DEFAULT_GOAL := help
.PHONY: help report docs test lint lab data gallery

help:  ## this text
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'
	@echo "  VENV=path uses another environment, PROFILE=name another profile of notebooks/profiles/"

# An environment runs the clone that it was installed from, as pip notes there; one whose clone is gone is free.
OWNER = $(wildcard $(shell sed -n 's|.*"file://\([^"]*\)".*|\1|p' $(VENV)/lib/python*/site-packages/eedkit-*.dist-info/direct_url.json 2>/dev/null))
.PHONY: owner
owner:
	@test -z '$(OWNER)' || test '$(OWNER)' -ef . || { echo "$(VENV) runs the eedkit of $(OWNER); name another environment with VENV=path"; exit 2; }

$(INSTALLED): pyproject.toml constraints.txt | owner
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "eedkit needs Python 3.11 or newer; name one with PYTHON=path"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# What the index links to is made before it.
report: $(INSTALLED) docs  ## run the bundled study on real images, leave an illustrated report in reports/
	$(if $(filter full,$(PROFILE)),$(BIN)/python -m eedkit report --profile fashion $(FASHION) --out reports/fashion)
	$(BIN)/python -m eedkit report --profile $(PROFILE) --out reports

docs: reports/api/index.html  ## build the API reference in reports/api/

reports/api/index.html: $(INSTALLED) $(SOURCES)
	$(BIN)/python -m pdoc --docformat numpy --no-show-source --output-directory $(@D) eedkit

test: $(INSTALLED) lint  ## check style and types, run every test
	$(BIN)/python -m pytest --numprocesses logical --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)  ## check style and types alone
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m basedpyright --pythonpath $(BIN)/python

lab: $(INSTALLED)  ## open the notebooks in JupyterLab; they find what `make report` left
	$(BIN)/python -m jupyterlab notebooks

data: $(INSTALLED)  ## make the bundled images again
	$(BIN)/python data/build.py

gallery: $(INSTALLED)  ## make README.md's picture, the gallery and ek.example() again
	$(BIN)/python notebooks/gallery/make.py
