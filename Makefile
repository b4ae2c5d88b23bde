# Two commands do everything: `make up` and `make test`. The rest is for people who develop this project.
PYTHON ?= python3
BIN := .venv/bin
# Most tests wait for processes and not for the processor.
JOBS ?= 3
.DEFAULT_GOAL := help
.PHONY: help up down status base dev tools manifests test test-aws test-kubernetes test-agent bench fuzz mutate soak lint format lock

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

up: base ## Stand up the local stack and run its first action, end to end.
	@$(BIN)/port-webhook up
	@$(BIN)/port-webhook run deploy_microservice --entity cart -i version=1.4.2 --follow
	@$(BIN)/port-webhook status

down: base ## Remove the local stack: processes, files and objects in local Port.
	@$(BIN)/port-webhook down

status: base ## Show what runs.
	@$(BIN)/port-webhook status

test: dev lint ## Run every test; what is skipped is printed with its reason.
	@$(BIN)/python -m port_webhook_stack.engine
	@$(BIN)/pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder || { \
	  echo "Some tests failed beside others: running those once more, alone."; \
	  $(BIN)/pytest --last-failed --last-failed-no-failures none; }

tools: ## Build the Kubernetes control plane of the tests, once per user (20 to 30 minutes).
	@$(PYTHON) tools/kubernetes/build.py

manifests: dev ## Write the manifests of both kubernetes stacks to .state/manifests, for a look or a checker.
	@for stack in kubernetes-dev kubernetes-prod; do \
	  rm -rf .state/manifests/$$stack; $(BIN)/python tools/kubernetes/render.py $$stack .state/manifests/$$stack; done

test-aws: dev ## Test target aws: rules over its resources, the archive under the real runtime client, the engine.
	@$(BIN)/python -m port_webhook_stack.engine
	@$(BIN)/pytest tests/component/aws tests/unit/aws tests/aws tests/engine/test_aws.py

test-kubernetes: dev ## Test target kubernetes; on a real control plane where `make tools` has built one.
	@$(BIN)/python -m port_webhook_stack.engine
	@$(BIN)/pytest tests/component/kubernetes tests/unit/kubernetes tests/kubernetes

test-agent: dev ## Test the execution agent, on a real Kafka broker.
	@$(BIN)/pytest tests/unit/agent tests/agent

bench: dev ## Run all benchmarks, or those in NAMES; SMALL=--small is quicker.
	@$(BIN)/python -m port_webhook_stack.engine
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements/bench.txt
	@$(BIN)/python -m benchmarks $(SMALL) $(NAMES)

fuzz: dev ## A million mutated requests against the receiver; CASES=… for another number.
	@$(BIN)/python -m tests.fuzz --cases $(or $(CASES),1000000)

mutate: dev ## Change verifier and ledger in small ways; every change must fail a test.
	@$(BIN)/python -m tests.mutation

soak: dev ## Runs by the thousand while listener and agents are killed and Port fails.
	@$(BIN)/python -m tests.faults.soak
	@$(BIN)/python -m tests.agent.soak
	@$(BIN)/python -m tests.agent.soak --source kafka

lint: dev ## Ruff and mypy --strict.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy components/port_webhook_stack handlers/port_webhook_handlers localport/port_webhook_localport __main__.py

format: dev ## Let ruff format and fix.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: dev ## Rewrite the lock files; UPGRADE=--upgrade takes newer versions.
	@requirements/lock.sh $(UPGRADE)

base:
	@$(PYTHON) tools/bootstrap.py base

dev:
	@$(PYTHON) tools/bootstrap.py dev
