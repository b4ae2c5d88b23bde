from __future__ import annotations

import json
import os
import stat
import time
from pathlib import Path

import pytest

from port_webhook_stack.engine import EngineError, pinned_version, resolve, resolver


def executable(path: Path, script: str) -> Path:
    """A shell script that stands for a program of that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, but for the shell's own tools."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setattr(resolver, "HEARTBEAT_SECONDS", 0.2)
    return folder


def no_download(monkeypatch: pytest.MonkeyPatch, script: str = "echo no route to host; exit 7") -> None:
    """The SDK's installer in a process of its own, replaced by a script."""
    monkeypatch.setattr(
        resolver.sys, "executable", str(executable(Path(os.environ["PATH"].split(":")[0]) / "py", script))
    )


def test_the_version_is_pinned_in_the_go_module() -> None:
    assert pinned_version().split(".")[0] == "3"


def test_a_new_enough_pulumi_on_the_path_is_taken(tools: Path, tmp_path: Path) -> None:
    pulumi = executable(tools / "pulumi", f"echo v{pinned_version()}")
    engine = resolve(print, cache=tmp_path / "cache")
    assert (engine.executable, engine.source, engine.version) == (pulumi, "PATH", pinned_version())
    assert not engine.language_host


def test_the_language_host_beside_it_is_seen(tools: Path, tmp_path: Path) -> None:
    executable(tools / "pulumi", f"echo v{pinned_version()}")
    executable(tools / "pulumi-language-python", "exit 0")
    assert resolve(print, cache=tmp_path / "cache").language_host


def test_an_engine_from_the_cache_needs_no_message(tools: Path, tmp_path: Path) -> None:
    cached = executable(
        tmp_path / f"v{pinned_version()}" / "build" / "bin" / "pulumi", f"echo v{pinned_version()}"
    )
    said: list[str] = []
    engine = resolve(said.append, cache=tmp_path)
    assert (engine.executable, said) == (cached, [])


def test_what_failed_is_listed_when_all_three_ways_fail(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tools / "pulumi", "echo v3.1.0")
    executable(tools / "go", "echo go1.99.0; [ $1 = env ] || exit 1")
    no_download(monkeypatch)
    with pytest.raises(EngineError) as caught:
        resolve(print, cache=tmp_path / "cache")
    message = str(caught.value)
    assert "older than" in message
    assert "download: no route to host" in message
    assert "build: " in message
    assert "put it on PATH" in message


def test_a_failed_download_is_remembered_and_then_forgotten(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(tools / "go", "echo go1.99.0; [ $1 = env ] || exit 1")
    no_download(monkeypatch)
    with pytest.raises(EngineError):
        resolve(print, cache=tmp_path)
    with pytest.raises(EngineError, match="it failed recently"):
        resolve(print, cache=tmp_path)
    memory = tmp_path / f"v{pinned_version()}" / "download-failed.json"
    memory.write_text(json.dumps({"at": time.time() - 2 * 24 * 3600, "reason": "old"}), encoding="utf-8")
    with pytest.raises(EngineError, match="download: no route to host"):
        resolve(print, cache=tmp_path)


def test_a_download_that_hangs_is_ended(tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(tools / "go", "echo go1.99.0; [ $1 = env ] || exit 1")
    no_download(monkeypatch, "sleep 60")
    monkeypatch.setattr(resolver, "DOWNLOAD_LIMIT_SECONDS", 0.7)
    said: list[str] = []
    with pytest.raises(EngineError, match=r"no result within"):
        resolve(said.append, cache=tmp_path)
    assert any(line.startswith("downloading…") for line in said)


def test_it_is_built_from_the_module_when_it_cannot_be_downloaded(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_download(monkeypatch)
    # Stands for the Go toolchain: writes a program that answers like the engine to the path after -o.
    build = (
        "if [ $1 = env ]; then echo go1.99.0; exit; fi\n"
        'test -f go.mod && test -f go.sum || exit 3\nwhile [ "$1" != -o ]; do shift; done\n'
        f'printf "#!/bin/sh\\necho v{pinned_version()}\\n" > "$2"; chmod +x "$2"'
    )
    executable(tools / "go", build)
    engine = resolve(print, cache=tmp_path)
    assert (engine.source, engine.version) == ("build", pinned_version())
    assert resolve(print, cache=tmp_path) == engine
