# The scripts by name; each says more about itself at its top.
.DEFAULT_GOAL := help
.PHONY: help demo test lint fresh cgroup2 bench faults escape fuzz mutation

help: ## list these
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## the main job, live: a sandbox, a build, a run killed by its cap, everything removed
	scripts/demo

test: ## the whole test suite, on an engine of its own
	scripts/test

lint: ## format, types, import directions, shell scripts, tool_schemas/
	scripts/lint

fresh: ## demo and test on minimal Debian 12 and 13 machines made new
	scripts/fresh

cgroup2: ## the contract suite on a cgroup v2 kernel, in qemu
	scripts/cgroup2

bench: ## measure against the host's own Docker; writes bench/results/latest.json
	scripts/bench

faults: ## kill servers and engines at work, look at what is left: make faults ROUNDS=1000 SEED=1
	scripts/faults $(or $(ROUNDS),30) $(or $(SEED),1)

escape: ## try to break out of sandboxes, in every tier and engine
	scripts/escape

fuzz: ## generated tool calls and gate requests: make fuzz NUMBER=20000 SEED=1
	scripts/fuzz $(or $(NUMBER),1000) $(or $(SEED),1)

mutation: ## every rule of the policy switched off in turn: a unit test must fail
	scripts/mutation
