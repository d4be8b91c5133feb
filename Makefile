# Every command that a person or CI needs. `make sandbox` and `make test` do all the set-up.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CARGO_TARGET := rust/target
RUST_SOURCES := $(shell find rust -name '*.rs' -not -path 'rust/target/*') rust/Cargo.toml rust/Cargo.lock rust/coco-core/Cargo.toml rust/coco-native/Cargo.toml .cargo/config.toml
DIR ?= tests/vectors/ethereum-tests
# More workers than cores, for tests of whole networks wait now and then; in the order of tests/order.py.
ALL_TESTS := -n $(or $(WORKERS),3) --dist loadgroup --no-loadscope-reorder

.PHONY: build sandbox test fuzz test-clients test-net test-vectors check format bench bench-attack wheel bundle verify-release lock soak forge clean

build: $(VENV)/.built ## Environment, extension, independent ledger reader

$(VENV)/.packages: requirements.lock
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sh scripts/install.sh $(BIN)/python requirements.lock
	touch $@

$(VENV)/.built: $(VENV)/.packages $(RUST_SOURCES) pyproject.toml
	@command -v cargo >/dev/null || { echo "Rust is needed: https://rustup.rs" >&2; exit 3; }
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop $$(test ! -x $(BIN)/uv || echo --uv) --profile develop --locked --target-dir $(CARGO_TARGET)
	touch $@

# The independent ledger reader needs an older cbor2 than Coco: an environment of its own.
.venv-ccf/.built: tests/requirements-ccf.lock $(VENV)/.packages
	test -x .venv-ccf/bin/python || $(PYTHON) -m venv --without-pip .venv-ccf
	sh scripts/install.sh .venv-ccf/bin/python tests/requirements-ccf.lock
	touch $@

tests/clients/node_modules/.built: tests/clients/package-lock.json
	cd tests/clients && npm ci --no-audit --no-fund --silent
	touch $@

bench/peers/node_modules/.built: bench/peers/package-lock.json
	cd bench/peers && npm ci --no-audit --no-fund --silent
	touch $@

bench/peers/bin/geth:
	GOBIN=$(CURDIR)/bench/peers/bin go install github.com/ethereum/go-ethereum/cmd/geth@v1.17.8

sandbox: build ## Start a network on this machine (development only)
	$(BIN)/coco sandbox $(ARGS)

test: build .venv-ccf/.built tests/clients/node_modules/.built ## All tests
	cd rust && PYO3_PYTHON=$(CURDIR)/$(BIN)/python cargo test --profile develop --locked --target-dir target -p coco-core --quiet
	$(BIN)/python -m pytest --durations 20 $(or $(ARGS),$(ALL_TESTS))

test-vectors: build ## Conformance data below DIR; ends with "N passed, N failed"
	$(BIN)/python tests/conformance/ethereum_tests.py $(DIR)

forge: build .venv-ccf/.built ## 10,000 forgeries by whoever holds the service key; 300 of them given to ccf as well
	$(BIN)/python tests/adversary/forger.py --seeds 0-9999 --ccf 300

soak: build forge ## 10,000 seeds of simulated networks of three and of five nodes; 1,200 lives of lying hosts; 10,000 forgeries
	$(BIN)/coco simulate --nodes 3 --seeds 0-9999
	$(BIN)/coco simulate --nodes 5 --seeds 0-9999
	$(BIN)/python tests/faults/lying_host.py --seeds 0-999
	$(BIN)/python tests/faults/lying_host.py --lead --seeds 0-199

fuzz: build ## Coverage-guided fuzzing, SECONDS for each of the two parts
	scripts/fuzz.sh $(or $(SECONDS),300)

test-clients: build ## hardhat, viem and cast as well
	cd tests/clients/more && npm install --no-audit --no-fund --silent
	$(BIN)/python -m pytest tests/clients -m clients

tests/faults/checker/checker: tests/faults/checker/main.go tests/faults/checker/go.mod tests/faults/checker/go.sum
	cd tests/faults/checker && go build -o checker .

test-net: build .venv-ccf/.built tests/faults/checker/checker ## Faults in network namespaces, histories checked; as root
	$(BIN)/python tests/faults/run.py --runs $(or $(RUNS),20) --seconds $(or $(RUN_SECONDS),60) --seed $(or $(SEED),1) $(ARGS)

check: build ## Format, lint, types, import rules, clippy
	$(BIN)/ruff format --check src tests bench examples scripts deploy
	$(BIN)/ruff check src tests bench examples scripts deploy
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/allowed_imports.py
	$(BIN)/python scripts/security_tests.py --check
	$(BIN)/python scripts/audit_model.py --check
	cd rust && cargo fmt --check
	cargo fmt --manifest-path rust/fuzz/Cargo.toml --check
	cargo update --quiet --workspace --locked --manifest-path rust/fuzz/Cargo.toml # is its lock that of what it fuzzes?
	cd rust && PYO3_PYTHON=$(CURDIR)/$(BIN)/python cargo clippy --profile develop --locked --target-dir target --all-targets -- -D warnings

format: build
	$(BIN)/ruff format src tests bench examples scripts deploy
	$(BIN)/ruff check --fix src tests bench examples scripts deploy
	cd rust && cargo fmt
	cargo fmt --manifest-path rust/fuzz/Cargo.toml

bench: build tests/clients/node_modules/.built ## Beside anvil, geth and etcd, as far as they are there
	-@$(MAKE) --no-print-directory bench/peers/node_modules/.built
	-@$(MAKE) --no-print-directory bench/peers/bin/geth
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --locked --target-dir $(CARGO_TARGET)
	$(BIN)/python bench/store.py
	$(BIN)/python bench/workload.py
	$(BIN)/python bench/idle.py
	$(BIN)/python bench/nodes.py
	$(BIN)/python bench/ethereum.py $(ARGS)

bench-attack: build ## Writes and memory, quiet and under each attack, in one run
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/maturin develop --release --locked --target-dir $(CARGO_TARGET)
	$(BIN)/python bench/attack.py $(ARGS)
	$(BIN)/python bench/connect.py

wheel: build ## Byte-identical wheel in dist/
	PATH=$(CURDIR)/$(BIN):$$PATH sh scripts/build_wheel.sh dist

bundle: wheel ## Byte-identical bundle in dist/: everything that a node runs but the system's own libraries
	$(BIN)/python scripts/build_bundle.py dist/coco_framework-*.whl dist

verify-release: build ## Two builds of the release in two folders are the same, and the same as WHEEL, if that is given
	COCO_RELEASE_PROFILE=1 COCO_WHEEL=$(WHEEL) $(BIN)/python -m pytest tests/unit/test_reproducible_wheel.py

lock: ## Renew the hash-pinned locks
	$(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --no-header --no-emit-index-url --extra dev --extra hsm pyproject.toml -o requirements.lock
	printf 'ccf==6.0.28\ncbor2<6\n' | $(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --no-header --no-emit-index-url --python-version 3.11 - -o tests/requirements-ccf.lock

clean:
	rm -rf $(VENV) .venv-ccf rust/target dist bench/out tests/clients/node_modules bench/peers/node_modules bench/peers/bin
