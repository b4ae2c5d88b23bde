"""The entry point of the image: it runs exactly the bundle that was deployed, or nothing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tests.kubernetes.control_plane import REPOSITORY

from port_webhook_handlers.bundle import Bundle, archive, build
from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_stack.errors import StackError
from port_webhook_stack.kubernetes import shards as cutting
from port_webhook_stack.kubernetes.shards import MAX_SHARDS, SHARD_BYTES, cut, shards

BOOT = REPOSITORY / "images" / "runtime" / "boot.py"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(["port_webhook_handlers.bundled.deploy"], tmp_path_factory.mktemp("bundles"))


def boot(root: Path, digest: str, role: str = "job") -> subprocess.CompletedProcess[str]:
    (root / "work").mkdir(exist_ok=True)
    environment = {"PORT_WEBHOOK_ROOT": str(root), "PORT_WEBHOOK_DIGEST": digest}
    environment["PORT_WEBHOOK_TERMINATION_LOG"] = str(root / "termination")
    return subprocess.run(
        [sys.executable, "-I", str(BOOT), role],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def mount(root: Path, data: bytes) -> None:
    (root / "bundle").mkdir()
    for piece in cut(data):
        (root / "bundle" / piece.key).write_bytes(piece.data)


def test_a_bundle_arrives_whole_whatever_the_number_of_pieces(
    tmp_path: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "SHARD_BYTES", 200 * 1024)
    data = archive(bundle, tmp_path / "b.zip").read_bytes()
    mount(tmp_path, data)
    # Nothing else is mounted, so the Job ends with a failure that it can report itself.
    done = boot(tmp_path, bundle.digest)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "termination").read_text())
    assert result["status"] == "FAILURE"
    assert "config.json" in result["summary"]


def test_another_bundle_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    mount(tmp_path, archive(bundle, tmp_path / "b.zip").read_bytes())
    done = boot(tmp_path, f"sha256:{'0' * 64}")
    assert (done.returncode, "deploy the stack again" in done.stderr) == (1, True)
    assert not (tmp_path / "work" / "bundle").exists()


@pytest.mark.parametrize("change", ["changed", "added", "missing", "garbage"])
def test_a_changed_bundle_is_refused_before_anything_of_it_is_imported(
    tmp_path: Path, bundle: Bundle, change: str
) -> None:
    data = archive(bundle, tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as package:
        content = {name: package.read(name) for name in package.namelist()}
    module = "port_webhook_handlers/runtime/launch.py"
    evil = b"import os; os._exit(99)"
    match change:
        case "changed":
            content[module] = evil
        case "added":
            content["sitecustomize.py"] = evil
        case "missing":
            del content[module]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as package:
        for name, text in content.items():
            package.writestr(name, text)
    mount(tmp_path, b"no archive" if change == "garbage" else buffer.getvalue())
    done = boot(tmp_path, bundle.digest)
    assert (done.returncode, "deploy the stack again" in done.stderr) == (1, True), done.stderr
    assert not (tmp_path / "work" / "bundle").exists()


def test_a_role_is_needed(tmp_path: Path) -> None:
    assert boot(tmp_path, "", "shell").returncode == 2


def test_pieces_are_named_after_their_content(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "SHARD_BYTES", 100 * 1024)
    pieces = shards(bundle)
    assert all(len(piece.data) <= 100 * 1024 for piece in pieces)
    assert len({piece.key for piece in pieces}) == len(pieces) > 1
    assert [piece.name for piece in pieces] == [piece.name for piece in shards(bundle)]
    # The same bundle packed by another zlib: other bytes must not take the names of these immutable objects.
    others = cut(archive(bundle, tmp_path / "b.zip").read_bytes())
    assert {piece.name for piece in pieces}.isdisjoint(piece.name for piece in others)


def test_a_bundle_that_is_too_large_is_refused() -> None:
    assert len(cut(b"x" * MAX_SHARDS * SHARD_BYTES)) == MAX_SHARDS
    with pytest.raises(StackError) as caught:
        cut(b"x" * (MAX_SHARDS * SHARD_BYTES + 1))
    assert "kubernetes.groups.<group>.image" in str(caught.value)


def test_the_folder_of_the_mounts_is_that_of_the_image() -> None:
    assert f'"{names.ROOT}"' in BOOT.read_text(encoding="utf-8")
