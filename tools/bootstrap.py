"""Makes the virtual environment from the lock files: `python3 tools/bootstrap.py base|dev`.

Standard library only, because it runs before anything is installed. Safe to repeat: it does nothing while lock
files and Python are the same.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "installed.json"
MINIMUM = (3, 11)
DISTRIBUTIONS = ("handlers", "localport", "components")


def main(profile: str) -> int:
    if sys.version_info < MINIMUM:
        found = ".".join(map(str, sys.version_info[:3]))
        return fail(
            f"Python {MINIMUM[0]}.{MINIMUM[1]} or newer is needed, this is {found} ({sys.executable}). "
            "Name another one: make PYTHON=python3.12 …"
        )
    VENV.mkdir(exist_ok=True)
    # The folder itself is the lock: `make` in two terminals must not install twice at once.
    lock = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return install(profile)
    finally:
        os.close(lock)


def install(profile: str) -> int:
    wanted = fingerprint(profile)
    installed = stamp()
    # A development environment holds the base as well.
    if wanted in (installed.get(profile), installed.get("dev") if profile == "base" else None):
        return 0
    if profile == "base" and installed.get("dev") and fingerprint("dev") == installed["dev"]:
        return 0
    if profile == "base" and installed.get("dev"):
        profile, wanted = "dev", fingerprint("dev")
    print(f"  environment    installing {profile} packages into .venv", flush=True)  # noqa: T201
    started = time.monotonic()
    python = VENV / "bin" / "python"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    locked = ["--require-hashes", "-r", str(ROOT / "requirements" / f"{profile}.txt")]
    uv = [
        str(VENV / "bin" / "uv"),
        "pip",
        "install",
        "--quiet",
        "--compile-bytecode",
        "--python",
        str(python),
    ]
    # uv is several times faster, but does not read pip's configuration: with a mirror only pip may get through.
    quick = [[*pip, "--require-hashes", "-r", str(ROOT / "requirements" / "uv.txt")], [*uv, *locked]]
    editable = (part for name in DISTRIBUTIONS for part in ("-e", str(ROOT / name)))
    reason = None if works(python) else run([sys.executable, "-m", "venv", "--clear", str(VENV)])
    if not reason:
        hindrance = next(filter(None, map(run, quick)), None)
        if hindrance:
            shown = hindrance.strip().splitlines()[-1]
            print(f"  environment    uv did not get through ({shown}), so pip installs", flush=True)  # noqa: T201
            reason = run([*pip, *locked])
    reason = reason or run([*pip, "--no-deps", "--no-build-isolation", *editable])
    if reason:
        return fail(reason)
    STAMP.write_text(json.dumps({profile: wanted}), encoding="utf-8")
    print(f"✓ environment    {profile} packages installed ({time.monotonic() - started:.1f} s)", flush=True)  # noqa: T201
    return 0


def fingerprint(profile: str) -> str:
    digest = hashlib.sha256(f"{sys.version_info[:2]} {ROOT}".encode())
    for path in [
        ROOT / "requirements" / f"{profile}.txt",
        *(ROOT / d / "pyproject.toml" for d in DISTRIBUTIONS),
    ]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def stamp() -> dict[str, str]:
    try:
        content = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) and works(VENV / "bin" / "python") else {}


def works(python: Path) -> bool:
    if not python.exists():
        return False
    answer = subprocess.run(
        [str(python), "-c", "import sys; print(sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=False,
    )
    return answer.stdout.strip() == str(sys.version_info[:2])


def run(command: list[str]) -> str | None:
    """Runs a step with a sign of life; returns what went wrong."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    # The system's certificates, as pip uses them.
    environment.setdefault("UV_SYSTEM_CERTS", "true")
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    output = ""
    while True:
        try:
            output, _ = process.communicate(timeout=10)
            break
        except subprocess.TimeoutExpired:
            print(f"  environment    … {time.monotonic() - started:.0f} s", flush=True)  # noqa: T201
    if process.returncode == 0:
        return None
    hint = ""
    if "ensurepip" in output or "No module named venv" in output:
        hint = " Install Python's venv module (on Debian and Ubuntu: apt install python3-venv)."
    return f"{' '.join(command[:4])} … failed:\n{output.strip()[-2000:]}{hint}"


def fail(reason: str) -> int:
    print(f"✗ environment    {reason}", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "base"))
