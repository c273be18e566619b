# The commands of this project. `make help` lists them.

# The first suitable Python, or PYTHON=...
PYTHON ?= $(shell for it in python3 python3.13 python3.12 python3.11; do \
	$$it -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$it; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PROTOS_VENV := .venv/protos
BENCH_VENV := .venv/bench
MUTANTS_VENV := .venv/mutants
UV := $(BIN)/python tools/uv_pip.py install
# The tests of a file run on one worker, because they share fixtures that take long to set up. There are more
# workers than cores, because many tests wait for other processes, and at most 8, because each has a PostgreSQL.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores < 6 ? cores + 2 : 8)))
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# The files that the builds of the example clients end with.
JAVA_CLIENT := build/clients/java/classpath
RUST_CLIENT := build/clients/rust/debug/examples/conformance
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url --no-annotate

.PHONY: help install run grpcurl test coverage torture mutants test-packages test-wheels check format protos clients client-go client-typescript client-java client-rust docs bench bench-quick sbom release-protos lock clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

run: $(VENV)/runtime ## install the requirements of the service, and serve on 127.0.0.1:50051 with the database store.db
	@$(BIN)/store-service serve

install: $(VENV)/installed ## set up .venv with both distributions, editable, and the pinned tools

# Only uv is installed by pip. uv downloads in parallel and does not compile modules in advance.
$(VENV)/uv: requirements/uv.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; none was found"; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-compile -r $<
	@touch $@

$(VENV)/runtime: requirements/runtime.txt requirements/build.txt pyproject.toml clients/python/pyproject.toml $(VENV)/uv
	@echo "Installing the service and its requirements into $(VENV)"
	@$(UV) --require-hashes -r requirements/runtime.txt -r requirements/build.txt
	@$(UV) --no-deps --no-build-isolation -e clients/python -e .
	@touch $@

$(VENV)/installed: requirements/dev.txt $(VENV)/runtime
	@echo "Installing the tools for checks and tests into $(VENV)"
	@$(UV) --require-hashes --build-constraints requirements/dev.txt -r requirements/dev.txt
	@touch $@

grpcurl: $(VENV)/runtime ## install grpcurl into .venv/bin, for Linux on x86-64
	@$(UV) --require-hashes --build-constraints requirements/grpcurl.txt -r requirements/grpcurl.txt
	@echo "Installed $(BIN)/grpcurl"

test: install ## run every test
	$(BIN)/pytest $(PARALLEL)

coverage: install ## run every test, slower, and require that they reach 95 % of the lines
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PARALLEL)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

torture: install ## run long tests of restarts, kills, load and random input: about two hours on an idle machine
	STORE_TEST_LONG=1 HYPOTHESIS_PROFILE=search $(BIN)/pytest --timeout=1800 --durations=0 tests/process tests/properties

mutants: $(MUTANTS_VENV)/installed ## test the tests with COUNT (30) random mutants of SEED (1): 15 minutes
	$(MUTANTS_VENV)/bin/python tools/mutants.py --count $(or $(COUNT),30) --seed $(or $(SEED),1)

$(MUTANTS_VENV)/installed: requirements/mutants.txt $(VENV)/installed
	$(BIN)/python -m venv --without-pip $(MUTANTS_VENV)
	$(UV) --python $(MUTANTS_VENV) --require-hashes -r requirements/mutants.txt
	@touch $@

test-packages: ## install the Debian packages that tests use (proxies, poolers, a browser, Patroni with etcd), as root
	apt-get update --quiet=2
	DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends \
		$$(grep -v '^#' requirements/debian.txt)
	@tools/newer_pgbouncer.sh || echo "The tests that need PgBouncer 1.21 or newer will be skipped."

test-wheels: install ## build both distributions, and test them in an empty environment
	$(BIN)/pytest tests/project/test_wheels.py tests/project/test_first_example.py

check: install $(PROTOS_VENV)/installed ## check format, lint, types, import layers, protos and generated code
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/buf lint protos
	$(BIN)/buf format protos --diff --exit-code
	$(BIN)/buf breaking protos --against protos/released.binpb
	$(PROTOS_VENV)/bin/python tools/generate_stubs.py --check
	$(BIN)/python tools/generate_sync.py --check

format: install ## format the code and the protos
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/buf format protos --write

protos: install $(PROTOS_VENV)/installed ## regenerate the stubs from protos/, and the sync client from the async one
	$(PROTOS_VENV)/bin/python tools/generate_stubs.py
	$(BIN)/python tools/generate_sync.py
	@if command -v go >/dev/null; then tools/generate_go.sh clients/go; \
		else echo "The stubs of clients/go were not generated, because go is not installed."; fi

clients: install ## build the clients in other languages, and name those whose tools are not installed
	@for it in go:go npm:typescript mvn:java cargo:rust; do \
		if command -v $${it%:*} >/dev/null; then $(MAKE) --no-print-directory client-$${it#*:} || exit 1; \
		else echo "clients/$${it#*:} was not built, because $${it%:*} is not installed."; fi; \
	done

client-go:
	cd clients/go && go vet ./... && go build ./...

client-typescript:
	cd clients/typescript && npm ci --no-audit --no-fund && npm run build

client-java: $(JAVA_CLIENT)

client-rust: $(RUST_CLIENT)

$(JAVA_CLIENT): clients/java/pom.xml $(shell find clients/java/src protos -type f) clients/python/src/storeapi/service_config.json
	mvn --batch-mode --quiet --file clients/java/pom.xml -Dbuild.folder=$(CURDIR)/$(@D) test-compile \
		dependency:build-classpath -Dmdep.outputFile=$(CURDIR)/$@
	@touch $@

$(RUST_CLIENT): $(shell find clients/rust -name '*.rs') clients/rust/Cargo.toml clients/python/src/storeapi/v1/descriptors.binpb
	CARGO_TARGET_DIR=$(CURDIR)/build/clients/rust cargo build --quiet --examples --manifest-path clients/rust/Cargo.toml
	@touch $@

$(PROTOS_VENV)/installed: requirements/protos.txt $(VENV)/installed
	$(BIN)/python -m venv --without-pip $(PROTOS_VENV)
	$(UV) --python $(PROTOS_VENV) --require-hashes -r requirements/protos.txt
	@touch $@

docs: install ## build the documentation as a web site in build/site; warnings are errors
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -d build/doctrees -c docs . build/site
	@$(BIN)/python tools/reference.py build/site/python
	@echo build/site/index.html

bench: $(BENCH_VENV)/installed ## run the benchmarks (20 minutes) and write docs/benchmarks.md
	$(BENCH_VENV)/bin/python -m benchmarks --write-docs

bench-quick: install ## compare the service on SQLite with a bare gRPC server and a plain implementation, in less than a minute
	$(BIN)/python -m benchmarks --quick

$(BENCH_VENV)/installed: requirements/bench.txt $(VENV)/installed
	$(BIN)/python -m venv --without-pip $(BENCH_VENV)
	$(UV) --python $(BENCH_VENV) --require-hashes -r requirements/bench.txt
	$(UV) --python $(BENCH_VENV) --no-deps --no-build-isolation -e clients/python -e .
	@touch $@

sbom: install ## write the software bill of materials to build/sbom.json (CycloneDX)
	$(BIN)/python tools/sbom.py build/sbom.json

release-protos: install ## store protos/ as the last release, with which `make check` compares
	$(BIN)/buf build protos --exclude-source-info -o protos/released.binpb

lock: install ## pin the newest versions that pyproject.toml and requirements/*.in allow
	$(COMPILE) --upgrade --python-version 3.11 --no-emit-package storeapi -o requirements/dev.txt \
		--extra postgresql --extra jwt --extra telemetry --extra cli pyproject.toml \
		clients/python/pyproject.toml requirements/dev.in
	$(COMPILE) --upgrade --python-version 3.11 --no-emit-package storeapi -o requirements/bench.txt \
		--constraint requirements/dev.txt --extra postgresql pyproject.toml clients/python/pyproject.toml \
		requirements/bench.in
	$(COMPILE) --upgrade --python-version 3.11 --no-emit-package storeapi -o requirements/runtime.txt \
		--constraint requirements/dev.txt --extra postgresql pyproject.toml clients/python/pyproject.toml
	for it in build uv grpcurl mutants; do \
		$(COMPILE) --upgrade --python-version 3.11 -o requirements/$$it.txt --constraint requirements/dev.txt \
			requirements/$$it.in || exit 1; \
	done
	$(COMPILE) --upgrade --python-version 3.11 -o requirements/protos.txt requirements/protos.in
	$(COMPILE) --upgrade --python-version 3.11 -o requirements/oldest.txt requirements/oldest.in

clean: ## remove all generated files, but no database
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
