"""The archive: the same bytes everywhere, small, within Lambda's limits."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from port_webhook_handlers.bundle import Bundle, build
from port_webhook_stack.listener.aws_archive import ArchiveError, LambdaArchive, build_archive

ROOT = Path(__file__).resolve().parents[3]
LOCK = ROOT / "requirements" / "handlers.txt"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(["port_webhook_handlers.bundled.deploy"], tmp_path_factory.mktemp("bundles"))


def make(bundle: Bundle, out: Path, lock: Path = LOCK, **changes: object) -> LambdaArchive:
    options = {"architecture": "arm64", "python": "3.13", "handler_settings": {}, "delegated": [], **changes}
    return build_archive(bundle, out, requirements=[lock], **options)  # type: ignore[arg-type]


def test_two_builds_are_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / bundle.path.name
    shutil.copytree(bundle.path, copy)
    for file in copy.rglob("*"):
        file.touch()
    other = Bundle(copy, bundle.digest, bundle.routes, bundle.definitions, bundle.permissions)
    first, second = make(bundle, tmp_path / "a"), make(other, tmp_path / "b")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.source_code_hash == second.source_code_hash
    # Nothing is made twice.
    written = first.path.stat().st_mtime_ns
    assert make(bundle, tmp_path / "a").path.stat().st_mtime_ns == written


def test_entries_are_sorted_with_fixed_times_and_modes(bundle: Bundle, tmp_path: Path) -> None:
    with zipfile.ZipFile(make(bundle, tmp_path).path) as package:
        items = package.infolist()
    names = [item.filename for item in items]
    assert names == sorted(names)
    assert {item.date_time for item in items} == {(1980, 1, 1, 0, 0, 0)}
    assert {item.external_attr >> 16 for item in items} == {0o100644}
    assert {item.compress_type for item in items} == {zipfile.ZIP_STORED}
    assert not [name for name in names if "__pycache__" in name or "boto" in name or "cryptography" in name]


def test_libraries_are_small_and_of_the_platform(bundle: Bundle, tmp_path: Path) -> None:
    for architecture, machine in (("arm64", "aarch64"), ("x86_64", "x86_64")):
        archive = make(bundle, tmp_path, architecture=architecture)
        assert archive.library_bytes < 5 * 1024 * 1024
        with zipfile.ZipFile(archive.path) as package:
            compiled = [name for name in package.namelist() if name.endswith(".so")]
        assert all(machine in name and "313" in name for name in compiled)


def test_encrypted_inputs_bring_cryptography_of_the_platform(bundle: Bundle, tmp_path: Path) -> None:
    archive = make(bundle, tmp_path, LOCK.with_name("handlers-encryption.txt"))
    with zipfile.ZipFile(archive.path) as package:
        (binding,) = (
            name for name in package.namelist() if name.startswith("lib/cryptography/") and ".so" in name
        )
        head = package.read(binding)[:20]
    # ELF, 64 bits, for AArch64.
    assert head[:5] == b"\x7fELF\x02"
    assert int.from_bytes(head[18:20], "little") == 183


def test_settings_and_versions_make_another_archive(bundle: Bundle, tmp_path: Path) -> None:
    hashes = {
        make(bundle, tmp_path, **changes).source_code_hash
        for changes in (
            {},
            {"handler_settings": {"*": {"a": 1}}},
            {"delegated": ["x"]},
            {"architecture": "x86_64"},
        )
    }
    assert len(hashes) == 4


def test_an_archive_over_lambdas_limit_names_what_is_large(tmp_path: Path) -> None:
    package = tmp_path / "models"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from port_webhook_handlers.sdk import Run, Success, action\n\n\n"
        '@action("guess", title="Guess")\ndef guess(run: Run) -> Success:\n    return Success()\n'
    )
    with (package / "weights.bin").open("wb") as weights:
        weights.truncate(50 * 1024 * 1024)
    bundle = build([package], tmp_path / "bundles")
    with pytest.raises(ArchiveError) as caught:
        make(bundle, tmp_path / "archives")
    text = str(caught.value)
    assert text.startswith(
        "port-webhook-stack:handlers and aws.requirements: the archive has 54 MiB, Lambda takes 50"
    )
    assert "largest are bundle/models (51200 KiB)" in text
    assert not list((tmp_path / "archives").iterdir())


def test_a_lock_without_hashes_is_refused(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lock = tmp_path / "lock.txt"
    lock.write_text("idna==3.20\n")
    with pytest.raises(ArchiveError, match="cannot be fetched"):
        make(bundle, tmp_path, lock)


def test_the_entry_point_loads_only_the_function_that_is_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    archive = make(bundle, tmp_path)
    with zipfile.ZipFile(archive.path) as package:
        package.extractall(tmp_path / "task")
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import entry\n"
        "try: entry.receiver\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print(sorted(n for n in sys.modules if n.startswith('port_webhook_handlers.runtime.aws.')))\n"
        "print('boto3' in sys.modules, 'requests' in sys.modules, 'asyncio' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "task")],
        capture_output=True,
        text=True,
        check=True,
        env={},
    )
    first, modules, libraries = done.stdout.splitlines()
    assert first.startswith("DeploymentError PORT_WEBHOOK: is missing")
    assert "worker" not in modules
    assert libraries == "False False False"
