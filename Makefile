# `make demo` on a fresh Debian or Ubuntu with Rust shows all of it. `make` lists the rest.

CARGO ?= cargo
# For the demo: make demo ARGS="--port 6432"
ARGS ?=
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: help setup demo test lint build clean

help:
	@echo 'make demo    set up this machine, build, and show pgsluice at work until Ctrl-C'
	@echo 'make test    set up this machine, run all tests, and count them'
	@echo 'make lint    formatting and clippy'
	@echo 'make build   target/release/pgsluice'
	@echo 'make setup   PostgreSQL and a C compiler, if they are missing'
	@echo 'make clean   remove what was built'

setup:
	@scripts/setup.sh

demo: setup build
	@target/release/pgsluice demo $(ARGS)

test: setup
	@scripts/test.sh

lint:
	@scripts/lint.sh

build:
	$(CARGO) build --release --locked

clean:
	$(CARGO) clean
