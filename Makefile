# The commands people must know; `make` alone lists them.

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
EMBEDDED := $(notdir $(wildcard diamond_gym/weights/[A-Z]*))

.DEFAULT_GOAL := help
.PHONY: help install demo test test-web slow check docs page fidelity pictures bench bench-long endurance package $(VENV)

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## create the virtual environment and install everything in it

$(VENV): $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[all]"
	touch $@

demo: $(STAMP) ## imagine Breakout beside the real game: demo.mp4, demo.png; an agent that learned in imagination: agent.mp4
	$(PY) -m diamond_gym.demo
	$(PY) -m trainers.sb3 demo

test: $(STAMP) ## the tests, without the slow ones and those that need a GPU or a browser
	$(PY) -m pytest -q -n 2 --dist worksteal -m "not slow and not gpu and not web"

test-web: $(STAMP) ## play's page in a browser; needs Chromium (apt-get install chromium)
	$(PY) -m pytest -q -m web

slow: $(STAMP) ## the slow tests
	$(PY) -m pytest -q -m "slow and not gpu and not web"

check: $(STAMP) ## style, types and the direction of imports
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)
	$(VENV)/bin/lint-imports

docs: $(STAMP) ## the documentation, docs/_build/html/index.html; a warning is an error
	$(PY) -m sphinx -q -W --keep-going -b html docs docs/_build/html

page: $(STAMP) ## the page that plays worlds in a browser, docs/_build/html/play_here; needs npm
	rm -rf docs/_build/html/play_here
	$(PY) docs/play_page.py out=docs/_build/html/play_here runtime=docs/_build/onnxruntime-web.tgz

fidelity: $(STAMP) ## imagined against real, in numbers, and whether the model cards still say the same
	for game in $(EMBEDDED); do \
		$(PY) -m diamond_gym.evaluate game=$$game out=fidelity/$$game && \
		$(PY) -m diamond_gym.evaluate.compare fidelity/$$game/fidelity.json diamond_gym/weights/$$game || exit 1; \
	done

package: ## sdist and wheel in dist/, checked, then installed and run in an empty environment without this folder
	PYTHON=$(PYTHON) .ci/package

pictures: $(STAMP) ## the pictures of README and documentation
	$(PY) docs/pictures.py

bench: $(STAMP) ## speed beside plain PyTorch: steps, training, the tables of docs/performance.md; kept in bench/
	mkdir -p bench
	$(PY) -m benchmarks.throughput --checkpoint embedded --compilers --json bench/throughput.jsonl
	$(PY) -m benchmarks.training --preset paper --no-replay --json bench/training.jsonl training.autocast=auto
	$(PY) -m benchmarks.training --preset embedded --parts denoiser --no-replay --no-collection --json bench/crops.jsonl training.autocast=auto
	$(PY) -m benchmarks.report bench/throughput.jsonl bench/training.jsonl bench/crops.jsonl history=bench

endurance: $(STAMP) ## every writer killed; a million steps, 1 000 times make and close: memory, files; hours; docs/scaling.png
	mkdir -p bench
	$(PY) -m benchmarks.kills --json bench/kills.jsonl
	$(PY) -m benchmarks.endurance --checkpoint embedded --json bench/endurance.jsonl --plot docs/scaling.png

bench-long: endurance
