# Two commands matter: `make demo` and `make test`. Both install what they need first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# pip compiles on one core only, `compileall` on all. Compiled modules make the first start quick.
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
# Otherwise each of a thousand processes compiles our sources again, and each worker rewrites all tests.
unexport PYTHONDONTWRITEBYTECODE

# The clone keeps its own database and files, unless a variable or `.env` names another home.
HOME_SET := $(BATCH_PIPELINE_HOME)$(shell grep -sE '^ *(export +)?BATCH_PIPELINE_HOME *= *.' .env)
IN_CLONE := $(if $(HOME_SET),,BATCH_PIPELINE_HOME='$(CURDIR)/.batch_pipeline')

.PHONY: help install install-dev install-lowest demo dev test test-slow proofs mutants mutation test-lowest test-ocr test-compose sbom docs faults benchmarks lint format clean reset

help:
	@echo "make demo    install, process the sample photos and videos in Dagster, show the result"
	@echo "make test    install, run the tests (make test-slow: faults, outages and restarts; make faults: all faults)"
	@echo "make dev     install, run Dagster for your own batches (http://127.0.0.1:3000)"
	@echo "make lint    ruff and mypy"
	@echo "make benchmarks  compare this pipeline with its alternatives (75 minutes)"
	@echo "make docs    the documents as a site in site/, with every link checked"
	@echo "make clean   remove the environment and what was built; stored files and batches stay"
	@echo "make reset   remove stored files and batches, after asking; cannot be undone"

install: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed; run: make PYTHON=python3.11 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e '.[embedded]'
	@$(COMPILE)
	@touch $@

# Only `make dev` needs Dagster's tool `dg`.
$(BIN)/.installed-dg: $(BIN)/.installed
	$(PIP_INSTALL) -e '.[dg]'
	@$(COMPILE)
	@touch $@

# Tests and lint need several times as many packages. Users should not have to wait for them.
install-dev: $(BIN)/.installed-dev

$(BIN)/.installed-dev: $(BIN)/.installed
	$(PIP_INSTALL) -e '.[dev]'
	@$(COMPILE)
	@touch $@

# Without a terminal nobody can stop the demo, so it exits when the batch has ended.
demo: install
	@if [ -t 0 ]; then $(IN_CLONE) exec $(BIN)/batch-pipeline demo $(ARGS); \
	else $(IN_CLONE) exec $(BIN)/batch-pipeline demo --exit $(ARGS); fi

dev: $(BIN)/.installed-dg
	@$(IN_CLONE) exec $(BIN)/python scripts/dev.py $(ARGS)

# All tests of a file run in one process, so that its fixtures are set up once. Long files run first.
# Many tests wait for processes, so there are more workers than cores.
test: install-dev
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

# Faults with real processes and signals, outages, restarts. These tests mostly wait for processes to
# end, so there are more workers than cores.
test-slow: install-dev
	$(BIN)/pytest -n 3 --dist loadgroup -m "slow and not proof" $(ARGS)

# Tests that take too long for CI; docs/reliability.md says when they last passed.
proofs: install-dev
	$(BIN)/pytest -n 2 --dist loadgroup -m proof $(ARGS)

# All faults and hostile inputs that docs/reliability.md promises to survive, including the fast tests.
faults: install-dev
	$(BIN)/pytest -n 2 --dist loadgroup batch_pipeline_tests/faults $(ARGS)

# Breaks a copy of the package in one place at a time, and expects a test to fail each time. Not in CI;
# docs/development.md has the last result.
mutants: install-dev
	$(BIN)/python scripts/mutants.py $(ARGS)

# Makes all small changes to the modules that pyproject.toml names. It fails if tests find fewer than
# 80 % of them.
mutation: install-dev
	$(PIP_INSTALL) -e '.[dev,mutation]'
	$(BIN)/python scripts/mutation_score.py

# Runs the tests of the parts close to Dagster with the lowest version that pyproject.toml allows. All
# other tests run with the version in constraints.txt.
NEAR_DAGSTER := unit/test_dagster_internals.py integration/executor \
	$(addprefix integration/orchestration/test_,event_log.py grouped_event_log.py executors.py \
	loop_rules.py pending_batches.py)

test-lowest: install-lowest
	PYTHONPATH=$(CURDIR) $(VENV)/lowest/bin/python -m pytest -n 2 --dist loadfile -m "not slow" \
		$(addprefix batch_pipeline_tests/,$(NEAR_DAGSTER)) $(ARGS)

install-lowest: $(VENV)/lowest/.installed

$(VENV)/lowest/.installed: scripts/lowest_dagster.sh pyproject.toml constraints.txt | install-dev
	scripts/lowest_dagster.sh $(BIN)/python $(VENV)/lowest
	@touch $@

# Installs the extra `ocr`. Afterwards the embedded analyzer also reads text in this environment, so run
# this last.
test-ocr: install-dev
	$(PIP_INSTALL) -e '.[dev,ocr]'
	$(BIN)/pytest -n 0 batch_pipeline_tests/integration/model_servers/test_ocr.py \
		batch_pipeline_tests/unit/model_servers/test_embedded.py $(ARGS)

# Tests the image and the Compose stack in real containers. It takes half an hour and needs root on
# Debian. Not in CI; docs/reliability.md says when it last passed.
test-compose:
	scripts/with_container_engine.sh $(PYTHON) scripts/test_compose.py

# Lists the packages in the image and their licences, as a bill of materials in CycloneDX's JSON. EXTRA
# is the build argument of the Dockerfile.
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

# Run this on a machine that does nothing else. It writes benchmarks/results. Tools that cannot be
# installed beside our packages get their own environment.
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
	rm -rf $(VENV) .tmp_dagster_home_* benchmarks/.environments build site *.egg-info \
		mutants .hypothesis .mypy_cache .pytest_cache .ruff_cache

reset: install
	@$(IN_CLONE) $(BIN)/python scripts/reset.py
