"""The archive of the Lambda functions: bundle, locked libraries for their platform, entry point.

    entry.py          puts bundle and lib on the path and names the functions
    deployment.json   settings of handlers
    bundle/           the runtime and the handlers, as everywhere
    lib/              the dependencies of the handlers' distribution, from wheels

Byte for byte the same on every machine: entries are sorted, stored, and have a fixed time and mode. Wheels are
fetched by pip for the platform of Lambda, with the hashes of the lock file; no container is needed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.bundle import Bundle
from port_webhook_stack.aws.settings import Architecture
from port_webhook_stack.errors import StackError

_TIME: Final = (1980, 1, 1, 0, 0, 0)
_MACHINES: Final = {"arm64": "aarch64", "x86_64": "x86_64"}
_GLIBC: Final = {"3.11": (17,), "3.12": (17, 28, 34), "3.13": (17, 28, 34), "3.14": (17, 28, 34)}
MOST_BYTES: Final = 50 * 1024 * 1024
"""Lambda takes no larger archive directly (its documentation, "Lambda quotas")."""

_PIP_SECONDS: Final = 300
_ENTRY: Final = '''\
"""Entry point: `entry.<function>` is the handler of a function."""

import importlib
import os
import sys

_root = os.path.dirname(os.path.abspath(__file__))
# Compiled files beside the sources could stand in for them after they were checked.
sys.dont_write_bytecode = True
sys.path[:0] = [os.path.join(_root, "bundle"), os.path.join(_root, "lib")]


def __getattr__(name):
    if name.startswith("_"):
        raise AttributeError(name)
    return importlib.import_module(f"port_webhook_handlers.runtime.aws.{name}").create()
'''


class ArchiveError(StackError):
    """The archive cannot be made, or Lambda would refuse it."""


@dataclass(frozen=True, slots=True)
class LambdaArchive:
    """A finished archive.

    Attributes:
        path: of the ZIP file.
        source_code_hash: SHA-256 in base64, as Lambda shows it.
        size: bytes.
        library_bytes: how much of it are libraries.
    """

    path: Path
    source_code_hash: str
    size: int
    library_bytes: int


def build_archive(
    bundle: Bundle,
    out: Path,
    *,
    architecture: Architecture,
    python: str,
    requirements: Sequence[Path],
    handler_settings: Mapping[str, Any],
    delegated: Sequence[str],
) -> LambdaArchive:
    """Makes the archive, or finds it made.

    Args:
        bundle: runtime and handlers.
        out: folder of archives.
        architecture: of the functions.
        python: version of Lambda's runtime, such as `3.13`.
        requirements: lock files with hashes.
        handler_settings: settings by route; `*` for all.
        delegated: synchronous routes that run in a function of their own.

    Raises:
        ArchiveError: wheels cannot be fetched, or the archive is larger than Lambda takes.
    """
    deployment = json.dumps(
        {"handler_settings": handler_settings, "delegated": sorted(delegated)},
        sort_keys=True,
        separators=(",", ":"),
    )
    locks = [path.read_bytes() for path in requirements]
    key = _hash(bundle.digest, architecture, python, deployment, _ENTRY, *locks)
    path = out / f"{key[:32]}.zip"
    if not path.is_file():
        entries: dict[str, bytes] = {"entry.py": _ENTRY.encode(), "deployment.json": deployment.encode()}
        for file in sorted(bundle.path.rglob("*")):
            if file.is_file():
                entries[f"bundle/{file.relative_to(bundle.path).as_posix()}"] = file.read_bytes()
        for wheel in _wheels(locks, architecture, python):
            entries |= {f"lib/{name}": data for name, data in _unpacked(wheel)}
        _write(entries, path)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        items = archive.infolist()
    if len(data) > MOST_BYTES:
        path.unlink()
        raise ArchiveError(
            f"port-webhook-stack:handlers and aws.requirements: the archive has {math.ceil(len(data) / 1024**2)} MiB, "
            f"Lambda takes {MOST_BYTES // 1024**2}; largest are {_largest(items)}: leave out what the handlers do not "
            "need, or have them fetch it when they run"
        )
    libraries = [item for item in items if item.filename.startswith("lib/")]
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    return LambdaArchive(path, digest, len(data), sum(item.file_size for item in libraries))


def _write(entries: Mapping[str, bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Stored, because compressed bytes depend on the version of zlib.
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(entries):
                entry = zipfile.ZipInfo(name, _TIME)
                entry.create_system = 3
                entry.external_attr = 0o100644 << 16
                archive.writestr(entry, entries[name])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _wheels(locks: Sequence[bytes], architecture: str, python: str) -> list[Path]:
    """Wheels of the locked packages for a platform, from the user's cache or by pip."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "port-webhook-stack" / "wheels"
    folder = cache / _hash(architecture, python, *locks)[:32]
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as scratch:
            lock = Path(scratch) / "requirements.txt"
            lock.write_bytes(b"\n".join(locks))
            fetched = Path(scratch) / "wheels"
            fetched.mkdir()
            _fetch(lock, fetched, architecture, python)
            try:
                fetched.rename(folder)
            except OSError:
                # Another process was faster.
                shutil.rmtree(fetched, ignore_errors=True)
    return sorted(folder.glob("*.whl"))


def _fetch(lock: Path, out: Path, architecture: str, python: str) -> None:
    machine = _MACHINES[architecture]
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC[python]]
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download", "--quiet",
        "--no-deps", "--require-hashes", "--only-binary", ":all:", "--implementation", "cp",
        "--python-version", python, "--abi", f"cp{python.replace('.', '')}", "--abi", "abi3", "--abi", "none",
        *(part for platform in platforms for part in ("--platform", platform)),
        "--platform", f"manylinux2014_{machine}", "--dest", str(out), "--requirement", str(lock),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PIP_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ArchiveError(
            f"the libraries of the Lambda functions were not fetched within {_PIP_SECONDS} s; "
            "check the network and try again"
        ) from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.strip().splitlines() if line.startswith("ERROR")]
        reason = (lines or done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ArchiveError(
            f"the libraries of the Lambda functions for Python {python} on {architecture} cannot be fetched: "
            f"{reason}; check the network, or the lock files that port-webhook-stack:aws.requirements names"
        )


def _unpacked(wheel: Path) -> Iterator[tuple[str, bytes]]:
    """Files of a wheel as they stand on the path; scripts and the record of the installation are left out."""
    with zipfile.ZipFile(wheel) as archive:
        for item in archive.infolist():
            name = item.filename
            if item.is_dir() or name.endswith((".pyc", ".pyi", ".dist-info/RECORD")):
                continue
            data = re.fullmatch(r"[^/]+\.data/([^/]+)/(.+)", name)
            if data is not None:
                if data[1] not in ("purelib", "platlib"):
                    continue
                name = data[2]
            yield name, archive.read(item)


def _largest(items: Sequence[zipfile.ZipInfo]) -> str:
    """The largest parts: a library, or a module or package of handlers."""
    sizes: dict[str, int] = {}
    for item in items:
        part = "/".join(item.filename.split("/")[:2])
        sizes[part] = sizes.get(part, 0) + item.file_size
    ranked = sorted(sizes, key=lambda name: -sizes[name])[:3]
    return ", ".join(f"{name} ({sizes[name] // 1024} KiB)" for name in ranked)


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(str(len(data)).encode() + b":" + data)
    return digest.hexdigest()
