# Every target works as the first command on a fresh clone: it makes .venv with the pinned versions when they changed.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export ORT_DISABLE_TELEMETRY := 1
# Containers often set it; each of a run's processes would then compile torch anew, for 7 s and more.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo repro flow experiments serve doctor test test-all mutation check format bench web server tree clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv==$$(sed -n 's/^uv==//p' constraints.txt)
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r pyproject.toml --extra dev -c constraints.txt
	touch $@

demo: .venv/installed  ## Run every stage on drawn images, in .demo/ (no network, no GPU)
	@$(BIN)/python -m flows.demo

repro: .venv/installed  ## Run the experiment in params.yaml with DVC
	@$(BIN)/python -m flows.mend
	$(BIN)/dvc repro

flow: .venv/installed  ## Run the same stages as a Prefect flow
	$(BIN)/python -m flows.pipeline

experiments: .venv/installed  ## Show the experiments side by side: settings and accuracies that differ, a screenful
	@$(BIN)/dvc exp show --only-changed --md --drop '.*/.*|.*\.py|fixes\.yaml|synthetic_images|base_recipe.*|.*_loss|.*_ece|.*roc_auc|.*_per_second|Created'

serve: .venv/installed  ## Start a Prefect server and the nightly schedule
	$(BIN)/python -m flows.serve

tree: .venv/installed  ## Write the list of files in CONTRIBUTING.md
	$(BIN)/python -m tests.tree

doctor: .venv/installed  ## Say what is missing on this machine, and what to do
	$(BIN)/python -m flows.doctor

# Two files at a time, one thread each: on two cores that is faster than one file on two threads. In conftest.py's order.
test: export OMP_NUM_THREADS := 1
test: .venv/installed  ## Run the tests
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder --durations=10

test-all: export OMP_NUM_THREADS := 1
test-all: .venv/installed  ## Run the slow tests too, with coverage
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered --durations=20

mutation: export OMP_NUM_THREADS := 1
mutation: .venv/installed  ## Break the rules on purpose, see that a test notices (half an hour): tests/mutation.md
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r pyproject.toml --extra dev --extra mutation -c constraints.txt
	mkdir -p .cache/mutation
	git ls-files -z --cached --others --exclude-standard | tar --create --null --ignore-failed-read --files-from=- | tar --extract --directory .cache/mutation
	cp tests/mutmut.cfg .cache/mutation/setup.cfg
	cd .cache/mutation && mutmut run --max-children 1
	cd .cache/mutation && mutmut results --all true | sed -E 's/^ *//; s/\.x[^:]*:/:/' | sort | uniq -c
	cd .cache/mutation && mutmut results

check: .venv/installed  ## Formatting, lint, types, import contracts, pins
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed  ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed  ## Measure speed beside the peers' ways; writes benchmarks/results/
	$(BIN)/python -m benchmarks

consumers/web/dist/ort.wasm.min.mjs: consumers/web/package.json consumers/web/vendor.json consumers/web/build.mjs
	npm --prefix consumers/web run build
	touch $@

web: MODEL := artifacts/model.onnx
web: .venv/installed consumers/web/dist/ort.wasm.min.mjs  ## Build the web page (needs node) and serve it on localhost, with artifacts/model.onnx or MODEL
	@$(BIN)/python consumers/web/serve.py --model $(MODEL)

server: MODEL := artifacts/model.onnx
server: .venv/installed  ## Serve artifacts/model.onnx, or MODEL=.demo/artifacts/model.onnx, on 127.0.0.1:8000
	@$(BIN)/python consumers/server/serve.py --model $(MODEL)

clean:  ## Remove the environment, the caches and the demo
	rm -rf .venv .cache .demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
