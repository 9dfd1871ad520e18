# `make demo` and `make test` set up everything they need in .venv.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
RUN := $(BIN)/python -m
TRAIN = $(RUN) trainer.task --model cnn --data_dir $(DEMO)/rsna_ich --epochs 8 \
  --set flip=true --set rotate_deg=10 --set shift=0.04 --set schedule=cosine

.PHONY: help demo check test test-environment test-extras test-faults test-long test-tfio tfio-environment lint bench clean

help:
	@echo "make demo    synthetic CT slices -> TFRecords -> slice and series models, compared; triage of unseen studies (into $(DEMO)/)"
	@echo "make check   format, lint, types and the quick tests, in about two minutes: the loop for daily work"
	@echo "make test    lint, types and tests"
	@echo "make test-long   the tests of half a minute or more alone (also part of make test; .ci/run leaves them out)"
	@echo "make test-faults  the faults of a conversion alone: kills, full disks, damage (also part of make test)"
	@echo "make test-extras  each extra alone in a clean environment (minutes of pip)"
	@echo "make test-tfio  our decoder against tensorflow-io's, in an environment of its own (Python 3.10 to 3.12)"
	@echo "make bench   the benchmarks (half an hour; prints tables, writes docs/benchmarks.md; Python 3.11 or newer)"
	@echo "make clean   remove what the others made"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 10) else None'
	@echo "making $(VENV) (the first time takes a few minutes)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(BIN)/python setup.py constraints.txt
	@$(PIP) --editable .
	@touch $@

$(VENV)/.train: $(VENV)/.base
	@$(PIP) --editable ".[train]"
	@touch $@

$(VENV)/.test: $(VENV)/.base
	@$(PIP) --editable ".[test]"
	@touch $@

# seed 34: each kind of hemorrhage falls into every split
demo: $(VENV)/.train
	@rm -rf $(DEMO)
	$(RUN) ich_tfrecords.synthetic --output $(DEMO)/ct --patients 160 --test_patients 12 \
	  --slices_per_study 16 --positive_fraction 0.6 --every_label --context --defects --seed 34
	$(RUN) beam_pipelines.convert --input $(DEMO)/ct/stage_2_train --labels $(DEMO)/ct/stage_2_train.csv \
	  --output $(DEMO)/rsna_ich --max_reject_fraction 0.02
	$(RUN) ich_tfrecords.inspect verify $(DEMO)/rsna_ich
	$(RUN) ich_tfrecords.inspect show $(DEMO)/rsna_ich --output $(DEMO)/montage.png
	$(RUN) ich_tfrecords.inspect report $(DEMO)/rsna_ich --output $(DEMO)/report
	$(TRAIN) --sampling balanced --job_dir $(DEMO)/runs/balanced
	$(TRAIN) --sampling natural --job_dir $(DEMO)/runs/natural
	$(RUN) trainer.task --model series --slice_run $(DEMO)/runs/balanced --data_dir $(DEMO)/rsna_ich \
	  --epochs 40 --batch_size 16 --learning_rate 0.002 --set architecture.width=128 --set architecture.units=64 \
	  --job_dir $(DEMO)/runs/series
	$(RUN) trainer.evaluate --job_dir $(DEMO)/runs/balanced
	$(RUN) trainer.evaluate --job_dir $(DEMO)/runs/natural
	$(RUN) trainer.evaluate --job_dir $(DEMO)/runs/series
	$(RUN) trainer.compare $(DEMO)/runs/balanced $(DEMO)/runs/natural --output $(DEMO)/comparison.html
	$(RUN) trainer.compare $(DEMO)/runs/series $(DEMO)/runs/balanced --output $(DEMO)/series.html
	$(RUN) trainer.export --job_dir $(DEMO)/runs/balanced --output $(DEMO)/saved_model
	$(RUN) trainer.predict --model $(DEMO)/saved_model --input $(DEMO)/ct/stage_2_test --output $(DEMO)/predicted
	@echo
	@echo "The results above are of made-up slices; they say nothing about patients."
	@echo "data set    $(DEMO)/rsna_ich   (README.md there says what it holds)"
	@echo "montage     $(DEMO)/montage.png"
	@echo "its report  $(DEMO)/report/index.html"
	@echo "runs        $(DEMO)/runs/balanced, natural and series   (history.csv, inputs.png, export/model.keras, result.json)"
	@echo "evaluation  $(DEMO)/runs/balanced/evaluation/test/report.html, and that of natural"
	@echo "comparison  $(DEMO)/comparison.html, and $(DEMO)/series.html of slices against series"
	@echo "for serving $(DEMO)/saved_model   (MODEL_CARD.md says what it is)"
	@echo "triage page $(DEMO)/predicted/triage.html   (triage.csv holds the list)"
	@echo "explained   $$(ls $(DEMO)/predicted/pictures/*.png | head -1)"

# what starts no process, trains and converts nothing: the loop for daily work
check: lint
	$(RUN) pytest -n 2 --dist worksteal -m "not slow and not fetches" --hypothesis-profile=quick \
	  --ignore tests/beam_pipelines --ignore tests/faults --ignore tests/benchmarks --ignore tests/tfio

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# halves of the tests in their order, so that what the tests of a file share is mostly made once
test: lint
	$(RUN) pytest -n 2 --dist worksteal --durations 60 $(SOME)

test-environment: $(VENV)/.test

# each extra by itself in a clean environment; 3 GB and some minutes of pip each
test-extras: $(VENV)/.test
	$(RUN) pytest -m fetches tests/trainer/test_extras_alone.py

# the tests of half a minute or more, which .ci/run leaves out of `make test`
test-long: $(VENV)/.test
	$(RUN) pytest -n 2 --dist worksteal -m long

test-faults: $(VENV)/.test
	$(RUN) pytest tests/faults

TFIO_VENV ?= .venv-tfio
TFIO_PIP := $(TFIO_VENV)/bin/python -m pip install --quiet --disable-pip-version-check

# TensorFlow 2.16 and what it is bound to; nothing of it meets .venv
$(TFIO_VENV)/.done: tests/tfio/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("tensorflow-io 0.37.1 needs Python 3.10 to 3.12, this is " + sys.version.split()[0] + "; make test-tfio PYTHON=python3.11") if not (3, 10) <= sys.version_info[:2] <= (3, 12) else None'
	@echo "making $(TFIO_VENV) (the first time takes a few minutes)"
	@$(PYTHON) -m venv $(TFIO_VENV)
	@$(TFIO_PIP) --requirement $<
	@touch $@

tfio-environment: $(TFIO_VENV)/.done

test-tfio: $(TFIO_VENV)/.done
	PYTHONPATH=. $(TFIO_VENV)/bin/python -m pytest tests/tfio

bench: $(VENV)/.test
	$(BIN)/python benchmarks/page.py --run
	$(BIN)/python benchmarks/bench_bucket.py
	$(BIN)/python benchmarks/bench_labels.py
	$(BIN)/python benchmarks/bench_convert.py
	$(BIN)/python benchmarks/bench_decode.py
	$(BIN)/python benchmarks/bench_memory.py
	$(BIN)/python benchmarks/bench_reader.py
	$(BIN)/python benchmarks/bench_step.py
	$(BIN)/python benchmarks/bench_sampling.py
	$(BIN)/python benchmarks/bench_odds.py
	$(BIN)/python benchmarks/bench_bootstrap.py
	$(BIN)/python benchmarks/bench_predict.py
	$(BIN)/python benchmarks/bench_predict.py --jpeg_lossless --slices 200
	$(BIN)/python benchmarks/bench_volumes.py
	$(BIN)/python benchmarks/bench_serve.py

clean:
	rm -rf $(VENV) $(TFIO_VENV) $(DEMO) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
