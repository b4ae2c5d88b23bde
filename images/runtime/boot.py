"""Entry point of the runtime image: unpacks the mounted bundle, checks every byte of it, then becomes its code.

Usage: boot.py listener|dispatcher|job|agent. Standard library only, because nothing of the bundle may be imported
before it is known to be the bundle that was deployed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import zipfile
from pathlib import Path

ROLES = {
    "listener": (
        "cryptography.hazmat.primitives.ciphers.aead", "fastjsonschema", "psutil", "requests", "sqlite3",
        "uvicorn.protocols.http.httptools_impl", "uvloop",
    ),
    "dispatcher": ("asyncio", "requests"),
    "job": ("asyncio", "psutil"),
    "agent": ("asyncio", "requests"),
}  # fmt: skip


class BootError(Exception):
    """The bundle is not the one that was deployed."""


def unpack(shards: Path, digest: str, target: Path) -> None:
    """Unpacks a bundle from its shards, in the order of their names, if it is exactly the one with that digest.

    Raises:
        BootError: something is missing, changed or not listed.
    """
    archive = b"".join(path.read_bytes() for path in sorted(shards.glob("bundle.*")))
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as package:
            content = {name: package.read(name) for name in package.namelist()}
    except zipfile.BadZipFile as error:
        raise BootError(f"the bundle cannot be read ({error}); deploy the stack again") from error
    manifest = content.pop("manifest.json", b"")
    found = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
    if found != digest:
        raise BootError(f"the bundle is {found}, deployed was {digest}; deploy the stack again")
    files = json.loads(manifest)["files"]
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
    if hashes != files:
        differing = sorted(name for name in {*hashes, *files} if hashes.get(name) != files.get(name))
        raise BootError(
            f"the bundle differs from its manifest: {', '.join(differing[:5])}; deploy the stack again"
        )
    for name, data in {**content, "manifest.json": manifest}.items():
        path = target / name
        # Names are those of the manifest, whose hash is known; a path outside would still be a defect.
        if not path.resolve().is_relative_to(target.resolve()):
            raise BootError(f"the bundle holds a path outside of it: {name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def main() -> int:
    """Becomes another program; returns an exit code if it cannot."""
    role = sys.argv[1] if len(sys.argv) == 2 else ""
    if role not in ROLES:
        sys.stderr.write(f"usage: boot.py {'|'.join(ROLES)}\n")
        return 2
    root = Path(os.environ.get("PORT_WEBHOOK_ROOT", "/port-webhook"))
    bundle = root / "work" / "bundle"
    try:
        unpack(root / "bundle", os.environ.get("PORT_WEBHOOK_DIGEST", ""), bundle)
    except (BootError, OSError) as error:
        sys.stderr.write(json.dumps({"event": "not started", "error": str(error)}) + "\n")
        return 1
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(bundle))
    from port_webhook_handlers.runtime.launch import python_command

    module = f"port_webhook_handlers.runtime.kubernetes.{role}"
    command = python_command(bundle, root / "work" / "pycache", ROLES[role], module)
    return os.execv(command[0], command)  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
