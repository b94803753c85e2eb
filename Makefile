# `make` lists the targets. All use one build (the dev profile), except bench.

CARGO ?= cargo
# Arguments for the demo: make demo ARGS="--seconds 30"
ARGS ?=
# How long `make soak` goes on, in seconds, and the seed of its faults: by default another one each time.
SOAK_SECONDS ?= 600
SEED ?=

# A test that hangs is to fail, not to stall. (macOS has no `timeout`.)
LIMIT := $(shell command -v timeout >/dev/null && echo timeout --kill-after 30 45m)

.PHONY: help demo test check bench soak servers clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: servers ## Start private servers and walcache, and show live what happens
	$(CARGO) run --quiet -- demo $(ARGS)

test: servers ## Everything CI runs
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(LIMIT) $(CARGO) test
	$(CARGO) run --quiet -- demo --seconds 10
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; \
	else echo "cargo-deny is not installed: licenses and advisories not checked"; fi

check: ## The quick loop while editing: format, lints, unit tests
	$(CARGO) fmt --check
	$(CARGO) clippy --lib --bins -- -D warnings
	$(CARGO) test --lib

# A part of it: make bench ARGS="-- drain --quick"
bench: ## Measure against a bare WAL reader and nginx
	scripts/install-servers --bench
	$(CARGO) bench $(ARGS)

soak: servers ## Random faults under load, every answer judged; then a transaction of a million rows
	WALCACHE_SOAK_SECONDS=$(SOAK_SECONDS) $(if $(SEED),WALCACHE_SOAK_SEED=$(SEED)) $(CARGO) test --test it $(ARGS) \
	    -- --nocapture random_faults racing_fills
	$(CARGO) test --test it -- --ignored --nocapture a_million_rows

servers: ## Install Postgres, wal2json and Redis where they are missing
	@scripts/install-servers

clean: ## Remove what was built
	$(CARGO) clean
