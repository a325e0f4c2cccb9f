# Everything here makes its own virtual environment in .venv and needs nothing installed by hand but Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := $(VENV)/.peers
JOBS ?= 2
TESTERS ?= 3  # more than there are cores: many tests wait for processes of their own

# One thread a process: several processes share the machine, and small steps get much slower on two threads.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test lint cluster torture bench benchmarks docs links gallery combinations evidence programs release-check clean

help:  ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/' | expand -t 16

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: Python 3.11 or later is needed; name one with make PYTHON=python3.12" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,docs,cluster]'
	touch $@

demo: $(INSTALLED)  ## Rerun table 2 of the tempering paper (under ten minutes on two cores) and write its report
	$(BIN)/counterflow reproduce tempering --profile laptop --jobs $(JOBS) --out counterflow-runs

test: $(INSTALLED) programs lint  ## Format, lint, types, layers, tests and doctests
	$(BIN)/pytest -n $(TESTERS) --dist loadscope --no-loadscope-reorder  # the small modules of src even out the end

lint: $(INSTALLED)  ## The same without the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

programs:  # the report is tested in headless Chromium, with axe-core for its accessibility; recordings are spoken by espeak-ng
	@sh scripts/install-package.sh chromium "the tests of the report in a browser" chromium chromium-browser google-chrome
	@sh scripts/install-package.sh espeak-ng "three tutorials" espeak-ng
	@sh scripts/install-axe.sh

cluster: $(INSTALLED)  ## Run all papers on dask, kill a worker on the way, and compare with a local run (some ten minutes)
	COUNTERFLOW_CLUSTER="$${COUNTERFLOW_CLUSTER:-all}" \
	  $(BIN)/pytest tests/lab/trials/test_cluster_papers.py -q

torture: $(INSTALLED)  ## Kill a running reproduction 300 times, and count what was lost or repeated
	COUNTERFLOW_KILLS=300 $(BIN)/pytest tests/lab/trials/test_torture.py -q

# Peers are for benchmarks alone. What mup, curvlinops and torchensemble declare would exchange torch or bring torchvision,
# which does not import beside its CPU build, so they come without.
$(PEERS): $(INSTALLED)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps mup \
		curvlinops-for-pytorch backpack-for-pytorch unfoldNd einconv \
		cplxmodule bayesian-torch blitz-bayesian-pytorch torchbnn torchensemble
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt pandas seaborn tqdm pyyaml \
		checkpoint-schedules pyrevolve pytorch-optimizer einops opt-einsum scipy linear_operator pocketsphinx \
		hmmlearn dynamax pomegranate
	touch $@

bench: $(INSTALLED)  ## Print every benchmark's ratios with their targets, from the records; write the README's part
	$(BIN)/python benchmarks/table.py --readme README.md

# Each script writes its record, which the table is made of. A race goes on from the runs that its file keeps, so that one
# that was stopped repeats nothing; to measure it again, it gets a new file, and the record is replaced when all are done.
RACES := tempering whitening separation
MEASURED := probe variational competition choice density speech speech_files noise_control bptt
AGAIN := counterflow-runs/benchmarks
benchmarks: $(INSTALLED) $(PEERS)  ## Measure all of that again (hours), beside plain baselines and other packages
	mkdir -p $(AGAIN)
	for name in $(RACES); do \
	  $(BIN)/python benchmarks/$$name.py --json $(AGAIN)/$$name.json || exit 1; done
	for name in $(MEASURED); do \
	  $(BIN)/python benchmarks/$$name.py --json evidence/benchmarks/$$name.json || exit 1; done
	for corpus in an4 prompts; do \
	  $(BIN)/python benchmarks/recognizer.py $$corpus --json evidence/benchmarks/recognizer.json || exit 1; done
	mv $(RACES:%=$(AGAIN)/%.json) evidence/benchmarks
	$(MAKE) bench

docs: $(INSTALLED)  ## Build the documentation into docs/_build/html
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

links: $(INSTALLED)  ## Ask every address outside that the documentation names whether it is still there (needs the network)
	$(BIN)/sphinx-build -b linkcheck docs docs/_build/links

gallery: $(INSTALLED)  ## Run every example in full (some minutes), for the docs' gallery
	$(BIN)/python scripts/gallery.py

combinations: $(INSTALLED)  ## Try every ordered pair of methods on one model, or those with METHOD, for the docs' table
	$(BIN)/python -m tests.contracts.pairs docs/combinations.json $(METHOD)

evidence: $(INSTALLED)  ## Run what is missing of the full evidence, pack it, and write REPRODUCTION.md from it
	$(BIN)/python scripts/evidence.py --jobs $(JOBS)

release-check: $(INSTALLED)  ## Build, install outside the checkout, and try a release as a stranger gets it (up to an hour)
	$(BIN)/python scripts/release_check.py

clean:  ## Remove what was built; the environment and finished runs stay
	rm -rf dist docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis
