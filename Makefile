# Two commands matter: `make demo` and `make test`. Both install what they need first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# pip would compile on one core what `compileall` compiles on all; the first start is then a quick one.
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

# The clone keeps its own database and files, unless a variable or `.env` names another home.
HOME_SET := $(BATCH_PIPELINE_HOME)$(shell grep -sE '^ *(export +)?BATCH_PIPELINE_HOME *= *.' .env)
IN_CLONE := $(if $(HOME_SET),,BATCH_PIPELINE_HOME='$(CURDIR)/.batch_pipeline')

.PHONY: help install install-dev demo dev test test-slow proofs mutants mutation test-lowest test-ocr test-compose sbom docs faults benchmarks lint format clean reset

help:
	@echo "make demo    install, work the sample photos and videos in Dagster, show the result"
	@echo "make test    install, run the tests (make test-slow: faults, outages and restarts; make faults: all faults)"
	@echo "make dev     install, run Dagster for your own batches (http://127.0.0.1:3000)"
	@echo "make lint    ruff and mypy"
	@echo "make benchmarks  this pipeline and what else one might use, side by side (50 minutes)"
	@echo "make docs    the documents as a site in site/, with every link checked"
	@echo "make clean   remove the environment and what was built; stored files and batches stay"
	@echo "make reset   remove stored files and batches, after asking; cannot be undone"

install: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; say: make PYTHON=python3.11 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e '.[embedded]'
	@$(COMPILE)
	@touch $@

# What tests and lint need is several times as much: whoever only wants to use it need not wait for it.
install-dev: $(BIN)/.installed-dev

$(BIN)/.installed-dev: $(BIN)/.installed
	$(PIP_INSTALL) -e '.[dev]'
	@$(COMPILE)
	@touch $@

# Without a terminal there is nobody to stop it: then it ends with the batch.
demo: install
	@if [ -t 0 ]; then $(IN_CLONE) exec $(BIN)/batch-pipeline demo $(ARGS); \
	else $(IN_CLONE) exec $(BIN)/batch-pipeline demo --exit $(ARGS); fi

dev: install
	@$(IN_CLONE) exec $(BIN)/python scripts/dev.py $(ARGS)

# All tests of a file in one process, so that what a file prepares is prepared once; long files first.
test: install-dev
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

# Faults with real processes and signals, outages, restarts: minutes of waiting for things to die,
# hence more workers than cores.
test-slow: install-dev
	$(BIN)/pytest -n 3 --dist loadgroup -m "slow and not proof" $(ARGS)

# What CI has no time for; docs/reliability.md says when it last passed.
proofs: install-dev
	$(BIN)/pytest -n 2 --dist loadgroup -m proof $(ARGS)

# Every fault and hostile input that docs/reliability.md promises to survive, the fast ones too.
faults: install-dev
	$(BIN)/pytest -n 2 --dist loadgroup batch_pipeline_tests/faults $(ARGS)

# Puts faults into a copy of the package, one at a time: each has a test that finds it. Not in CI;
# docs/development.md says what came of it.
mutants: install-dev
	$(BIN)/python scripts/mutants.py $(ARGS)

# All small changes of the modules that pyproject.toml names; ends with an error below 80 % killed.
mutation: install-dev
	$(PIP_INSTALL) -e '.[dev,mutation]'
	$(BIN)/mutmut run --max-children 2
	$(BIN)/python scripts/mutation_score.py

# What is close to Dagster's own code, with the lowest version of it that pyproject.toml allows. The
# newest is the one that constraints.txt locks, which all other tests run with.
NEAR_DAGSTER := unit/test_dagster_internals.py integration/executor \
	$(addprefix integration/orchestration/test_,event_log.py grouped_event_log.py executors.py \
	loop_rules.py pending_batches.py)

test-lowest: install-dev
	scripts/lowest_dagster.sh $(BIN)/python $(VENV)/lowest
	PYTHONPATH=$(CURDIR) $(VENV)/lowest/bin/python -m pytest -n 2 --dist loadfile -m "not slow" \
		$(addprefix batch_pipeline_tests/,$(NEAR_DAGSTER)) $(ARGS)

# Last, if at all: whatever is described in this environment afterwards is read for text, too.
test-ocr: install-dev
	$(PIP_INSTALL) -e '.[dev,ocr]'
	$(BIN)/pytest -n 0 batch_pipeline_tests/integration/model_servers/test_ocr.py \
		batch_pipeline_tests/unit/model_servers/test_embedded.py $(ARGS)

# The image and the Compose stack in real containers, half an hour; as root on Debian. Not in CI:
# docs/reliability.md says when it last passed.
test-compose:
	scripts/with_container_engine.sh $(PYTHON) scripts/test_compose.py

# What is in the image, with the licence of each: a bill of materials in CycloneDX's JSON. EXTRA is that
# of the Dockerfile.
EXTRA ?= production
sbom:
	rm -rf build/image*
	deploy/install.sh dependencies '$(CURDIR)/build/image' $(EXTRA)
	build/image-tools/bin/pip install --quiet --disable-pip-version-check cyclonedx-bom
	build/image-tools/bin/cyclonedx-py environment --pyproject pyproject.toml \
		--output-reproducible --output-file build/sbom.json build/image/bin/python
	@echo "build/sbom.json"

docs: install-dev
	$(PIP_INSTALL) -e '.[dev,docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# On a machine with nothing else to do; writes benchmarks/results. Peers that do not share our
# environment get one of their own.
benchmarks: install-dev
	$(PIP_INSTALL) -e '.[dev,benchmarks]'
	$(BIN)/python benchmarks/orchestration.py --install-peers
	$(BIN)/python benchmarks/run_all.py $(ARGS)

lint: install-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .tmp_dagster_home_* benchmarks/.environments build *.egg-info \
		mutants .mypy_cache .pytest_cache .ruff_cache

reset:
	@$(IN_CLONE) $(BIN)/python scripts/reset.py
