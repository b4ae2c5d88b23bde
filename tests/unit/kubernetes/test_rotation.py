"""Looking at what a rotation replaced, and ending it, with a kubectl that answers with one Secret."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from port_webhook_stack.cli import cluster

KUBECTL = """#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in *" get secret "*) printf '%s' "$FOUND" ;; esac
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(KUBECTL)
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def secret(text: str) -> str:
    return json.dumps({"data": {"previous.json": base64.b64encode(text.encode()).decode()}})


@pytest.mark.parametrize("found", [secret("[{"), json.dumps({"data": {}})])
def test_what_cannot_be_read_is_named_and_can_be_ended(
    calls: Path, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    monkeypatch.setenv("FOUND", found)
    place = cluster.Cluster(context="c")
    with pytest.raises(cluster.ClusterError, match="rotate-secret --retire"):
        cluster.previous(place)
    assert cluster.end_former(place)
    deleted = [line for line in calls.read_text().splitlines() if "delete secret previous-secrets" in line]
    assert ["port-webhook-runs" in line for line in deleted] == [False, True]


def test_without_a_rotation_there_is_nothing_to_end(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOUND", "")
    place = cluster.Cluster()
    assert cluster.previous(place) == []
    assert not cluster.end_former(place)
