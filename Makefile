PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet $(PIP_OPTIONS) --constraint constraints.txt --editable

.PHONY: train test coverage quick test-oldest test-newest results docs release audit clean

train: .venv/.installed  ## train da-capsnet on the embedded digits and show the result
	$(BIN)/dualcaps train digits --epochs 40

test: .venv/.installed-dev  ## lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest -n auto --dist worksteal

coverage: .venv/.installed-dev  ## the tests again, and which lines they run; fails below 90 %
	$(BIN)/pytest -n auto --cov --cov-fail-under=90

quick: .venv/.installed-dev  ## lint, and the tests of what was changed since the last commit, without the slow ones
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pytest -n auto -m "not slow" $$($(BIN)/python tests/changed.py)

test-oldest:  ## the tests with the oldest versions that pyproject.toml allows
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest --resolution lowest-direct --editable '.[dev]'
	.venv-oldest/bin/pytest -n auto

test-newest:  ## the tests with the newest versions of everything
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --editable '.[dev]'
	.venv-newest/bin/pytest -n auto

docs: .venv/.installed-dev  ## build the documentation in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

release: .venv/.installed-dev  ## build sdist and wheel in dist/ and try the wheel in a fresh environment
	rm -rf dist .venv-release
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build --outdir dist .
	$(PYTHON) -m venv .venv-release
	.venv-release/bin/python -m pip install --quiet --constraint constraints.txt dist/*.whl
	.venv-release/bin/python -m pip check
	cd dist && ../.venv-release/bin/dualcaps train digits --epochs 1 --out ../.venv-release/run
	cd dist && ../.venv-release/bin/dualcaps evaluate ../.venv-release/run
	$(BIN)/python -m pip install --quiet cyclonedx-bom
	$(BIN)/cyclonedx-py environment .venv-release --of JSON --output-file dist/sbom.json
	rm -rf .venv-release
	ls -l dist

audit: .venv/.installed-dev  ## known vulnerabilities of everything that is installed
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python -m pip install --quiet pip-audit
	$(BIN)/python tools/audit.py .venv-audit/bin/pip-audit "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

results: .venv/.installed  ## the paper's tables and figures again, from the committed records
	$(BIN)/dualcaps report results/paper --out results/paper
	$(BIN)/dualcaps report results/full-length --out results/full-length
	$(BIN)/dualcaps report results/digits-200 --out results/digits-200

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) .
	touch $@

.venv/.installed-dev: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[dev]'
	touch .venv/.installed $@

clean:
	rm -rf .venv .venv-oldest .venv-newest .venv-release .venv-audit site dist
