#!/usr/bin/env bash
# Rewrites the lock files: hashed, for every platform, without naming a registry.
# Usage: requirements/lock.sh [uv pip compile options, e.g. --upgrade]
set -euo pipefail
cd "$(dirname "$0")/.."
uv="${UV:-.venv/bin/uv}"
compile() {
  "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
    --no-emit-index-url --no-emit-find-links --no-annotate \
    --no-emit-package port-webhook-handlers --no-emit-package port-webhook-localport \
    --no-emit-package port-webhook-stack "$@"
}
overrides="$(mktemp)"
trap 'rm -f "$overrides"' EXIT
for distribution in handlers localport components; do
  printf 'port-webhook-%s @ file://%s/%s\n' "${distribution/components/stack}" "$PWD" "$distribution"
done > "$overrides"
base=(handlers/pyproject.toml localport/pyproject.toml components/pyproject.toml)
compile --override "$overrides" "${base[@]}" --extra local --extra lint --extra encryption requirements/build.in requirements/dev.in -o requirements/dev.txt "$@"
compile --override "$overrides" "${base[@]}" --extra local --extra lint --extra encryption requirements/build.in -c requirements/dev.txt -o requirements/base.txt
compile handlers/pyproject.toml -c requirements/dev.txt -o requirements/handlers.txt
compile handlers/pyproject.toml --extra encryption -c requirements/dev.txt -o requirements/handlers-encryption.txt
# What the runtime image of target kubernetes installs.
compile handlers/pyproject.toml --extra local --extra encryption --extra agent -c requirements/dev.txt -o requirements/runtime.txt
# What the listener is compared with in benchmarks and in differential tests.
compile requirements/bench.in -c requirements/dev.txt -o requirements/bench.txt
compile requirements/uv.in -c requirements/dev.txt -o requirements/uv.txt
