"""Which resource owns a folder of this machine.

When a resource is replaced, its successor is created before it is deleted, and both work on the same folder. The
one that is deleted must then leave it alone.
"""

from __future__ import annotations

import secrets
from pathlib import Path

_FILE = "owner"


def take(folder: Path) -> str:
    """Makes the caller the owner of a folder; returns the token that proves it, for the state."""
    token = secrets.token_hex(8)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    (folder / _FILE).write_text(token, encoding="ascii")
    return token


def owns(folder: Path, token: object) -> bool:
    """Whether nobody else has taken the folder since; true as well if it is gone or has no owner."""
    try:
        return (folder / _FILE).read_text(encoding="ascii") == token
    except OSError:
        return True
