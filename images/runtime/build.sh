#!/usr/bin/env bash
# Builds and pushes the runtime image with its SBOM and provenance, and prints the name to put into a stack file.
# Usage: images/runtime/build.sh <registry>/<name>[:tag]      BASE=<image>@sha256:… pins another base.
set -euo pipefail
cd "$(dirname "$0")/../.."
target="${1:?usage: images/runtime/build.sh <registry>/<name>[:tag]}"
docker buildx version >/dev/null 2>&1 || { echo "docker buildx is needed to build the runtime image; install it, or build images/runtime/Dockerfile with another builder (--build-arg BASE=<image>@sha256:…)" >&2; exit 2; }
if [[ -z "${BASE:-}" ]]; then
  tag=docker.io/library/python:3.13-slim
  BASE="${tag%:*}@$(docker buildx imagetools inspect "$tag" --format '{{ .Manifest.Digest }}')"
fi
if [[ ! "$BASE" =~ @sha256:[0-9a-f]{64}$ ]]; then
  echo "BASE: '$BASE' is not pinned by digest; write it as name@sha256:<64 hex digits>" >&2
  exit 2
fi
metadata="$(mktemp)"
trap 'rm -f "$metadata"' EXIT
docker buildx build --file images/runtime/Dockerfile --build-arg "BASE=$BASE" --platform linux/amd64,linux/arm64 \
  --sbom=true --provenance=mode=max --metadata-file "$metadata" --tag "$target" --push .
digest="$(sed -n 's/.*"containerimage.digest": "\(sha256:[0-9a-f]*\)".*/\1/p' "$metadata" | head -n 1)"
if [[ -z "$digest" ]]; then
  echo "the builder gave no digest for $target; see its output" >&2
  exit 1
fi
echo "base   $BASE"
name="$target"
# A colon behind the last slash is a tag's; one before it is a port's.
[[ "${target##*/}" == *:* ]] && name="${target%:*}"
echo "image  $name@$digest"
