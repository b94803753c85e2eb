# `make` lists the targets. All use one build (the dev profile), except bench.

CARGO ?= cargo
export CARGO
# Arguments for the demo: make demo ARGS="--seconds 30"
ARGS ?=
# How long `make soak` goes on, in seconds, and the seed of its faults: by default another one each time.
SOAK_SECONDS ?= 600
SEED ?=
# How long each part of `make fuzz` goes on, in seconds.
FUZZ_SECONDS ?= 60
# What `make test-matrix` goes through.
MATRIX ?= 14 15 16 17 18 valkey

# Tests wait for servers more than they compute.
export RUST_TEST_THREADS ?= $(shell echo $$((2 * $$(getconf _NPROCESSORS_ONLN))))
# Tests in which it does not matter what the stream is made of.
ANY_STREAM := abuse audit away claim cli clocks compression crash dry_run explain failover fill_cap freshness herd \
              history::judged history::left_out http keepalive keys lookups outage overtaken parts projection \
              redis_faults redis_network renewals resync sandbox secrets shutdown slot_faults starts voids::operate \
              voids::patterns warming words
# A test that hangs is to fail, not to stall. (macOS has no `timeout`.)
LIMIT := $(shell command -v timeout >/dev/null && echo timeout --kill-after 30 45m)

.PHONY: help demo test test-matrix check bench soak fuzz servers clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 13

demo: servers ## Start private servers and walcache, and show live what happens
	$(CARGO) run --quiet -- demo $(ARGS)

test: servers ## Everything CI runs
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(LIMIT) $(CARGO) test --lib --bins --test model
	scripts/test-it
	WALCACHE_TEST_PLUGIN=wal2json scripts/test-it $(ANY_STREAM:%=--skip %::)
	$(CARGO) run --quiet -- demo --seconds 10
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny check; \
	else echo "cargo-deny is not installed: licenses and advisories not checked"; fi

# None of these servers has wal2json.
test-matrix: servers ## The integration tests with every supported version of the servers
	scripts/install-matrix
	$(CARGO) test --no-run --test it
	@for version in $(MATRIX); do \
	    echo "== $$version"; \
	    case $$version in \
	        valkey) set -- WALCACHE_REDIS_SERVER=$(CURDIR)/target/servers/valkey/valkey-server ;; \
	        *) set -- WALCACHE_PG_BINDIR=$(CURDIR)/target/servers/postgres-$$version/bin ;; \
	    esac; \
	    env "$$@" scripts/test-it $(ARGS) || exit 1; \
	done

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

fuzz: servers ## Look for input that a decoder or the renderer cannot take, and for rows that read otherwise than in Postgres
	WALCACHE_FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test --lib -- --nocapture no_trace nested
	WALCACHE_FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test --test it -- --nocapture random_rows_of_random_types

servers: ## Install Postgres, wal2json and Redis where they are missing
	@scripts/install-servers

clean: ## Remove what was built
	$(CARGO) clean
