import json
from pathlib import Path

import pytest

from port_webhook_handlers.runtime.manifest import (
    FILE_NAME,
    Manifest,
    ManifestError,
    Route,
    hash_file,
    load,
    parse,
    verify_files,
)

ROUTE = Route(name="deploy", kind="action", action="deploy", handler="pkg.mod:run", secrets=("TOKEN",))


def write_bundle(folder: Path) -> Manifest:
    (folder / "pkg").mkdir(parents=True)
    (folder / "pkg" / "mod.py").write_text("def run(): ...\n")
    manifest = Manifest({"pkg/mod.py": hash_file(folder / "pkg" / "mod.py")}, {"deploy": ROUTE})
    (folder / FILE_NAME).write_bytes(manifest.dumps())
    return manifest


def test_round_trip_and_digest(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path)
    loaded, digest = load(tmp_path)
    assert loaded == manifest
    assert digest == manifest.digest
    assert loaded.dumps() == (tmp_path / FILE_NAME).read_bytes()
    verify_files(tmp_path, loaded)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"mode": "later"}, "routes.deploy.mode"),
        ({"method": "post"}, "routes.deploy.method"),
        ({"max_attempts": 0}, "routes.deploy.max_attempts"),
        ({"max_attempts": True}, "routes.deploy.max_attempts"),
        ({"timeout_seconds": float("inf")}, "routes.deploy.timeout_seconds"),
        ({"payload": []}, "routes.deploy.payload"),
        ({"secrets": "TOKEN"}, "routes.deploy.secrets"),
        ({"inputs_schema": []}, "routes.deploy.inputs_schema"),
        ({"handler": "pkg/mod.py:run"}, "routes.deploy.handler"),
        ({"colour": "red"}, "colour"),
        ({"action": ""}, "routes.deploy.action"),
    ],
)
def test_wrong_value_is_named(change: dict[str, object], named: str) -> None:
    body = {"version": 1, "files": {}, "routes": {"deploy": {**ROUTE.to_json(), **change}}}
    with pytest.raises(ManifestError, match=named):
        parse(json.dumps(body).encode())


@pytest.mark.parametrize("key", list(ROUTE.to_json()))
def test_missing_key_is_named(key: str) -> None:
    route = ROUTE.to_json()
    del route[key]
    with pytest.raises(ManifestError, match=key):
        parse(json.dumps({"version": 1, "files": {}, "routes": {"deploy": route}}).encode())


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b'{"version":2,"files":{},"routes":{}}', b'{"version":1,"files":[],"routes":{}}'],
)
def test_not_a_manifest(data: bytes) -> None:
    with pytest.raises(ManifestError):
        parse(data)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a//b", "a/./b", "a\\b", ""])
def test_paths_outside_the_bundle_are_refused(path: str) -> None:
    with pytest.raises(ManifestError, match="files"):
        parse(json.dumps({"version": 1, "files": {path: "0" * 64}, "routes": {}}).encode())


def test_changed_missing_and_extra_files_are_refused(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path)
    module = tmp_path / "pkg" / "mod.py"
    original = module.read_bytes()

    module.write_bytes(original + b"#")
    with pytest.raises(ManifestError, match=r"pkg/mod\.py is changed"):
        verify_files(tmp_path, manifest)
    module.unlink()
    with pytest.raises(ManifestError, match=r"pkg/mod\.py is missing"):
        verify_files(tmp_path, manifest)
    elsewhere = tmp_path.parent / "elsewhere.py"
    elsewhere.write_bytes(original)
    module.symlink_to(elsewhere)
    with pytest.raises(ManifestError, match=r"pkg/mod\.py is missing"):
        verify_files(tmp_path, manifest)
    module.unlink()
    module.write_bytes(original)
    (tmp_path / "pkg" / "sneaky.py").write_text("")
    with pytest.raises(ManifestError, match=r"pkg/sneaky\.py is not in the manifest"):
        verify_files(tmp_path, manifest)
