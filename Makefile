# Each target works on its own in a fresh clone; `make` alone lists them.

MOUNT ?= $(if $(filter 0,$(shell id -u)),/dnp,$(HOME)/dnp)
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-tests run stop test test-two test-newer test-cluster test-systemd test-packages properties soak soak-groups dist man lint bench docs

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo 'MOUNT=DIR chooses the mount point ($(MOUNT)), ARGS=… is handed on.'

setup: ## install what is missing: packages, .venv
	@scripts/setup.sh

setup-tests: ## install what only the tests need, too
	@scripts/setup.sh --tests

run: setup ## mount at MOUNT with an etcd of its own, push and read a first message
	@scripts/run.sh '$(MOUNT)' $(ARGS)

stop: ## unmount MOUNT
	@scripts/stop.sh '$(MOUNT)'

test: setup-tests ## run all checks: lint, types, tests with a real etcd and real mounts
	@.venv/bin/python -m pytest $(ARGS)

test-two: setup-tests ## the same, two files at a time: in half the time, on a machine that has nothing else to do
	@.venv/bin/python -m pytest -n 2 --dist loadgroup $(ARGS)

test-newer: setup-tests ## run all checks with an etcd 3.5 from a newer Debian suite
	@etcd=$$(scripts/etcd_newer.sh) && DNPIPEFS_TEST_ETCD=$$etcd .venv/bin/python -m pytest $(ARGS)

test-packages: setup-tests ## build wheel and sdist, install them with pip and pipx as users do; completion in all shells
	@scripts/setup.sh --packages
	@DNPIPEFS_TEST_PACKAGES=thorough .venv/bin/python -m pytest tests/packages tests/cli/test_completion.py \
		tests/docs/test_man.py $(ARGS)

test-cluster: DURATION ?= 180
test-cluster: setup-tests ## let a cluster on hosts of its own meet every fault, then all for DURATION seconds (180; as root)
	@DNPIPEFS_TEST_CLUSTER=thorough DNPIPEFS_TEST_SIEGE_S=$(DURATION) .venv/bin/python -m pytest -s tests/cluster $(ARGS)

test-systemd: setup-tests ## make hosts under systemd nodes as the guide says, and kill, freeze, reboot and upgrade them (as root)
	@scripts/setup.sh --systemd
	@DNPIPEFS_TEST_SYSTEMD=1 .venv/bin/python -m pytest tests/systemd $(ARGS)

soak: DURATION ?= 1800
soak: setup-tests ## let everything work on a cluster that meets all faults for DURATION seconds (1800), and judge it (as root)
	@DNPIPEFS_TEST_CLUSTER=thorough DNPIPEFS_TEST_SIEGE_S=$(DURATION) \
		.venv/bin/python -m pytest -s tests/cluster/test_siege.py -k under_siege $(ARGS)

STEPS ?= 100000
properties: setup-tests ## let random clusters live for STEPS steps (100000), and look for planted faults
	@DNPIPEFS_TEST_PROPERTY_STEPS=$(STEPS) .venv/bin/python -m pytest -s tests/model $(ARGS)

soak-groups: DURATION ?= 600
soak-groups: setup-tests ## kill workers and mounts of consumer groups for DURATION seconds (600), and judge what they had
	@DNPIPEFS_TEST_GROUP_KILLS_S=$(DURATION) .venv/bin/python -m pytest -s tests/mount/test_group_kills.py $(ARGS)

dist: setup ## build wheel and sdist into dist/
	@scripts/dist.sh

man: setup ## write the man pages anew, from the commands and the docs
	@.venv/bin/python scripts/generate_man.py

lint: setup ## run the linters and the check of the layers only
	@.venv/bin/python -m pytest -q tests/test_lint.py tests/test_layers.py

docs: setup ## build the site of docs/ in docs/_build/html
	@.venv/bin/python -m sphinx --quiet --fail-on-warning --keep-going --builder html docs docs/_build/html $(ARGS)
	@echo 'open docs/_build/html/index.html'

bench: setup ## measure against raw etcd
	@.venv/bin/dnpipefs bench $(ARGS)
