"""Rules of the runtime image's build. No registry is reached here: the image itself is not built."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from tests.kubernetes.control_plane import REPOSITORY

from port_webhook_stack.kubernetes import pods

FOLDER = REPOSITORY / "images" / "runtime"
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
DOCKER = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$2" in
  imagetools) echo "$RESOLVED" ;;
  build) while [ $# -gt 0 ]; do [ "$1" = --metadata-file ] && printf '%s' "$METADATA" > "$2"; shift; done ;;
esac
"""


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def test_every_stage_is_of_the_base_that_the_builder_names() -> None:
    found = instructions()
    assert found[0] == ("ARG", "BASE")
    assert {rest.split()[0] for name, rest in found if name == "FROM"} == {"${BASE}"}


def test_the_image_runs_as_the_pods_say() -> None:
    found = dict(instructions())
    assert found["USER"] == f"{pods.USER}:{pods.USER}"
    assert [*json.loads(found["ENTRYPOINT"]), "listener"] == pods.command("listener")
    # Nothing but folders below it is written to, which are mounted.
    assert found["WORKDIR"] == "/port-webhook/work"


def test_only_hashed_wheels_and_listed_files_get_in() -> None:
    installs = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert len(installs) == 1
    for option in ("--require-hashes", "--only-binary :all:", "--no-deps", "--no-cache-dir"):
        assert option in installs[0]
    copied = {rest.split()[-2] for name, rest in instructions() if name == "COPY" and "--from" not in rest}
    allowed = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert allowed[0] == "*"
    assert copied == {line.removeprefix("!") for line in allowed[1:]}
    assert all((REPOSITORY / path).is_file() for path in copied)
    assert not {"ADD", "VOLUME", "ONBUILD"} & {name for name, _ in instructions()}


@pytest.mark.parametrize(
    ("base", "code"),
    [(f"registry:5000/python@{DIGEST}", 0), ("python:3.13-slim", 2), ("python@sha256:abc", 2), ("", 2)],
)
def test_a_base_without_a_digest_is_refused_by_the_dockerfile(base: str, code: int) -> None:
    (check,) = [rest for name, rest in instructions() if name == "RUN" and rest.startswith("case")]
    done = subprocess.run(
        ["sh", "-c", check], env={"BASE": base}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert ("is not pinned by digest" in done.stderr) == (code != 0)


def build(tmp_path: Path, target: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs build.sh with a docker that writes down how it is called."""
    docker = tmp_path / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    values = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "RESOLVED": DIGEST,
        "METADATA": json.dumps({"containerimage.digest": DIGEST}),
        **environment,
    }
    command = ["bash", str(FOLDER / "build.sh"), target]
    return subprocess.run(command, env=values, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("target", "name"), [("registry:5000/x:1", "registry:5000/x"), ("registry:5000/x", "registry:5000/x")]
)
def test_the_build_attaches_what_is_in_the_image_and_prints_its_name(
    tmp_path: Path, target: str, name: str
) -> None:
    done = build(tmp_path, target)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        *("base", f"docker.io/library/python:3.13-slim@{DIGEST}".replace(":3.13-slim", "")),
        *("image", f"{name}@{DIGEST}"),
    ]
    called = (tmp_path / "calls").read_text()
    for option in ("--sbom=true", "--provenance=mode=max", "linux/amd64,linux/arm64", f"python@{DIGEST}"):
        assert option in called


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"BASE": "python:3.13-slim"}, "'python:3.13-slim' is not pinned by digest"),
        ({"RESOLVED": ""}, "is not pinned by digest"),
        ({"METADATA": "{}"}, "the builder gave no digest"),
    ],
)
def test_a_build_that_cannot_be_pinned_says_so(
    tmp_path: Path, environment: dict[str, str], part: str
) -> None:
    done = build(tmp_path, "registry/x", **environment)
    assert done.returncode != 0
    assert part in done.stderr
    assert "image" not in done.stdout


def test_without_a_builder_the_remedy_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        ["/bin/bash", str(FOLDER / "build.sh"), "registry/x"],
        env={"PATH": "/usr/bin:/bin" if not Path("/usr/bin/docker").exists() else str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "docker buildx is needed" in done.stderr
