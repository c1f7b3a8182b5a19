# Two commands do all the set-up: `make demo` (the main job, embedded) and `make test` (the whole test command).
PYTHON ?= python3
TEST_ENV := .venv
DEMO_ENV := .venv-demo
NEWEST_ENV := .venv-newest
DEMO_DIR ?= demo
DEMO_ROWS ?= 4096
DEMO_DETECTOR ?= WFI01

.PHONY: demo test lint types unit coverage newest faults parity bench bench-engine bench-association lock clean

define make_environment
	@$(PYTHON) -c 'import sys; sys.exit("make: Python >= 3.11 is needed, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1) || { echo "make: $(PYTHON) cannot make virtual environments: install its venv module" >&2; exit 1; }
	@test -x $(1)/bin/uv || $(1)/bin/python -m pip --quiet --disable-pip-version-check install "uv>=0.9"
	@cmp -s $(2) $(1)/.lock || { $(1)/bin/uv pip install --quiet --python $(1)/bin/python -r $(2) && cp $(2) $(1)/.lock; }
	@cmp -s pyproject.toml $(1)/.pyproject || { $(1)/bin/uv pip install --quiet --python $(1)/bin/python --no-deps -e . && cp pyproject.toml $(1)/.pyproject; }
endef

demo:
	$(call make_environment,$(DEMO_ENV),requirements/product.lock)
	$(DEMO_ENV)/bin/python -m ops.demo --out $(DEMO_DIR) --rows $(DEMO_ROWS) --detector $(DEMO_DETECTOR)

# `newest` first: it compiles the kernels once, which the tests would do several times side by side.
test:
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint types newest
	$(MAKE) --no-print-directory unit

.PHONY: test-environment
test-environment:
	$(call make_environment,$(TEST_ENV),requirements/test.lock)

lint: test-environment
	$(TEST_ENV)/bin/ruff check .
	$(TEST_ENV)/bin/ruff format --check .

types: test-environment
	$(TEST_ENV)/bin/mypy

# In the order of collection, for then the longest are not last. Three for two cores: many tests of faults mostly wait.
TEST_PROCESSES ?= 3
unit: test-environment
	$(TEST_ENV)/bin/python -m pytest -n $(TEST_PROCESSES) --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

# Lines that no test of this process reaches; what workers and job processes run does not count.
coverage: test-environment
	$(TEST_ENV)/bin/python -m pytest -n $(TEST_PROCESSES) --dist loadscope --no-loadscope-reorder --cov --cov-report=term:skip-covered $(PYTEST_ARGS)

# The product and the tests of reading and writing files, with the newest generation of the field's libraries (all other
# tests need the oracle's).
NEWEST_DIR := .cache/newest
NEWEST_TESTS ?= tests/stages/test_finalize.py tests/stages/test_l1.py tests/stages/test_payload.py tests/stages/test_ground_test.py tests/stages/test_step_output.py
newest:
	$(call make_environment,$(NEWEST_ENV),requirements/newest.lock)
	rm -rf $(NEWEST_DIR)
	$(NEWEST_ENV)/bin/python -m ops.demo --out $(NEWEST_DIR) --rows 128
	$(NEWEST_ENV)/bin/python -m pytest $(NEWEST_TESTS)

# Every fault at its full length and with the times that it may take (about 45 minutes), and each preset;
# `test` runs a slice of each.
faults: test-environment
	RAMPSTREAM_FAULTS=full $(TEST_ENV)/bin/python -m pytest tests/faults tests/e2e/test_presets_distributed.py tests/e2e/test_distributed.py $(PYTEST_ARGS)

# All comparisons with the reference implementation; writes the tables of docs/parity.md if all pass.
# `make parity RAMPSTREAM_PARITY=full`: many more generated cases.
PARITY_DIR := $(CURDIR)/.cache/parity
parity: test-environment
	rm -rf $(PARITY_DIR)
	RAMPSTREAM_PARITY=$(RAMPSTREAM_PARITY) RAMPSTREAM_PARITY_RECORDS=$(PARITY_DIR) \
		$(TEST_ENV)/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder tests/parity
	$(TEST_ENV)/bin/python -m tests.parity.page $(PARITY_DIR)

bench: test-environment
	$(TEST_ENV)/bin/python -m bench.pipeline

# The engine on real Kafka and S3: messages a second, overhead and bytes by preset (`BENCH_ARGS=--quick`: minutes).
bench-engine: test-environment
	$(TEST_ENV)/bin/python -m bench.engine $(BENCH_ARGS)

# Associations of ten thousand members, and ten thousand open ones (`BENCH_ARGS="--members 500 --associations 500"`: a minute).
bench-association: test-environment
	$(TEST_ENV)/bin/python -m bench.association $(BENCH_ARGS)

lock:
	uv pip compile --quiet --universal --python-version 3.11 --no-header --extra oracle --extra test pyproject.toml -o requirements/test.lock
	uv pip compile --quiet --universal --python-version 3.11 --no-header pyproject.toml -o requirements/product.lock
	uv pip compile --quiet --universal --python-version 3.11 --no-header --extra newest --constraint requirements/product.lock pyproject.toml -o requirements/newest.lock

clean:
	rm -rf $(TEST_ENV) $(DEMO_ENV) $(NEWEST_ENV) $(DEMO_DIR)
