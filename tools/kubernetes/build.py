"""Makes a Kubernetes control plane ready for the tests, once for each user.

kube-apiserver, kube-controller-manager and kube-scheduler are built from their published Go modules at the
version that go.mod pins, kube-score likewise (checker/go.mod); etcd is Debian's. The result is outside the clone, in
`${XDG_CACHE_HOME:-~/.cache}/port-webhook-stack/kubernetes/<version>/bin`, so every clone of a user shares it.
Standard library only: it runs before the virtual environment exists.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
CHECKER = "kube-score"
MODULE_FILES = ("go.mod", "go.sum", "tools.go")


class ToolError(Exception):
    """A part of the control plane could not be had; the message says which and what to do."""


def pinned_version() -> str:
    """Version of Kubernetes that go.mod pins, with its leading `v`."""
    pin = re.search(r"^require k8s\.io/kubernetes (v\S+)", (HERE / "go.mod").read_text("utf-8"), re.MULTILINE)
    if pin is None:
        raise ToolError("tools/kubernetes/go.mod requires no k8s.io/kubernetes; restore the file from git")
    return pin.group(1)


def folder() -> Path:
    """Folder of the binaries, whether they are there or not."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "port-webhook-stack" / "kubernetes" / pinned_version() / "bin"


def missing(binaries: Path) -> list[str]:
    """Names of the binaries that are not ready in the folder."""
    return [name for name in ("etcd", *COMPONENTS, CHECKER) if not os.access(binaries / name, os.X_OK)]


def build(binaries: Path) -> None:
    """Makes every missing binary ready.

    Raises:
        ToolError: one of them could not be had.
    """
    binaries.mkdir(parents=True, exist_ok=True)
    with _exclusive(binaries.parent / "lock"):
        wanted = missing(binaries)
        if "etcd" in wanted:
            _etcd(binaries)
        if CHECKER in wanted:
            _compile(CHECKER, binaries, HERE / "checker", "github.com/zegl/kube-score/cmd/kube-score", "")
        for name in COMPONENTS:
            if name in wanted:
                _component(name, binaries)


def _component(name: str, binaries: Path) -> None:
    version = pinned_version()
    major, minor = version.removeprefix("v").split(".")[:2]
    symbols = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    flags = " ".join(f"-X k8s.io/component-base/version.{key}={value}" for key, value in symbols.items())
    _compile(name, binaries, HERE, f"k8s.io/kubernetes/cmd/{name}", flags)


def _compile(name: str, binaries: Path, module: Path, package: str, flags: str) -> None:
    go = shutil.which("go")
    if go is None:
        raise ToolError(f"{name}: it is built with Go, which is not on PATH; install Go (https://go.dev/dl/)")
    started = time.monotonic()
    _say(f"building {name} (one core; 1 to 20 minutes)")
    with tempfile.TemporaryDirectory(dir=binaries.parent) as scratch:
        for file in MODULE_FILES:
            shutil.copy(module / file, scratch)
        output = Path(scratch) / name
        # One compiler at low priority: whoever works on this machine meanwhile does not feel it.
        command = ["nice", "-n", "19", go, "build", "-p", "1", "-trimpath", "-ldflags", f"-s -w {flags}"]
        environment = {**os.environ, "GOFLAGS": "-mod=readonly", "CGO_ENABLED": "0", "GOMAXPROCS": "1"}
        outcome = subprocess.run(
            [*command, "-o", str(output), package],
            cwd=scratch,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if outcome.returncode != 0:
            lines = outcome.stderr.strip().splitlines()
            raise ToolError(f"{name}: go build failed: {lines[-1] if lines else outcome.returncode}")
        output.replace(binaries / name)
    _say(f"built {name} in {time.monotonic() - started:.0f} s")


def _etcd(binaries: Path) -> None:
    installed = shutil.which("etcd")
    if installed is not None:
        (binaries / "etcd").unlink(missing_ok=True)
        (binaries / "etcd").symlink_to(installed)
        return
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise ToolError("etcd: it is not on PATH and this is no Debian; install etcd 3.4 or newer")
    _say("fetching etcd (Debian's etcd-server)")
    with tempfile.TemporaryDirectory(dir=binaries.parent) as scratch:
        # Unpacked instead of installed: no root is needed and no service is started.
        for command in (["apt-get", "download", "etcd-server"], ["dpkg-deb", "-x"]):
            packages = [str(path) for path in Path(scratch).glob("*.deb")]
            arguments = [*command, *packages, scratch] if command[0] == "dpkg-deb" else command
            outcome = subprocess.run(arguments, cwd=scratch, capture_output=True, text=True, check=False)
            if outcome.returncode != 0:
                reason = (outcome.stderr.strip().splitlines() or ["no reason given"])[-1]
                raise ToolError(f"etcd: {' '.join(command)} failed: {reason}; try `apt-get update` first")
        shutil.copy2(Path(scratch) / "usr" / "bin" / "etcd", binaries / ".etcd")
        (binaries / ".etcd").replace(binaries / "etcd")


@contextlib.contextmanager
def _exclusive(lock: Path) -> Iterator[None]:
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _say("another process builds the control plane: waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _say(message: str) -> None:
    sys.stdout.write(f"  control plane  {message}\n")
    sys.stdout.flush()


def main() -> int:
    """Returns the exit code."""
    try:
        binaries = folder()
        build(binaries)
    except ToolError as error:
        sys.stderr.write(f"✗ control plane  {error}\n")
        return 1
    sys.stdout.write(f"✓ control plane  kubernetes {pinned_version()} ({binaries})\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
