# `make demo` on a fresh Debian or Ubuntu with Rust shows all of it. `make` lists the rest.

CARGO ?= cargo
# For the demo, the soak, the drivers, the suite and the benchmark: make demo ARGS="--port 6432"
ARGS ?=
# make bench QUICK=1, make drivers QUICK=1, make regress QUICK=1
QUICK ?=
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: help setup demo test soak drivers regress fuzz lint bench bench-classify build clean

help:
	@echo 'make demo    set up this machine, build, and show pgsluice at work until Ctrl-C'
	@echo 'make test    set up this machine, run all tests, and count them'
	@echo 'make soak    hundreds of failovers under load, and how long writes take after one; ARGS="--rounds 20 bank"'
	@echo 'make drivers the drivers of ten languages, directly and through the proxy; ARGS="jdbc pg" takes only these'
	@echo 'make regress PostgreSQL'"'"'s regression suite, directly and through the proxy; ARGS="rules plpgsql" takes only these,'
	@echo '             ARGS=--isolation the isolation suite'
	@echo 'make fuzz    what mutated statements are by pgsluice and by PostgreSQL'"'"'s own grammar; ARGS="10000000 --seed 7", ARGS="--live 20000"'
	@echo 'make lint    formatting and clippy'
	@echo 'make bench   pgsluice beside PgBouncer and direct connections; QUICK=1 takes a minute'
	@echo 'make bench-classify   what it costs to tell a read from a write; ARGS="hit" takes only these'
	@echo 'make build   target/release/pgsluice'
	@echo 'make setup   PostgreSQL and a C compiler, if they are missing (make test: Patroni and etcd as well)'
	@echo 'make clean   remove what was built'

setup:
	@scripts/setup.sh

demo: setup build
	@target/release/pgsluice demo $(ARGS)

test:
	@scripts/setup.sh --tests
	@scripts/test.sh

soak:
	@scripts/soak.sh $(ARGS)

drivers:
	@scripts/drivers.sh $(if $(QUICK),--quick) $(ARGS)

regress:
	@scripts/regress.sh $(if $(QUICK),--quick) $(ARGS)

fuzz:
	@scripts/fuzz.sh $(ARGS)

lint:
	@scripts/lint.sh

bench:
	@benches/run.sh $(if $(QUICK),--quick) $(ARGS)

bench-classify:
	@$(CARGO) bench --locked --bench classify -- $(ARGS)

build:
	$(CARGO) build --release --locked

clean:
	$(CARGO) clean
