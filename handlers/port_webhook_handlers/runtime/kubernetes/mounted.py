"""The secrets store in a cluster: Secrets mounted as files, replaced in place when they change."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from port_webhook_handlers.runtime.kubernetes import names
from port_webhook_handlers.runtime.secret_file import SecretFileError, StoredSecrets


@dataclass(frozen=True, slots=True)
class MountedSecrets:
    """A `secrets.json` in the format of the secrets store, and beside it what a rotation replaced.

    Attributes:
        path: of `secrets.json`.
        previous: of `previous.json`, a list as `previous` of the secrets store; there only after a rotation.
    """

    path: Path
    previous: Path | None = None

    @classmethod
    def below(cls, root: Path) -> MountedSecrets:
        """Those of a process whose mounts are below `root`."""
        return cls(root / "secrets" / names.SECRETS_FILE, root / "previous" / names.PREVIOUS_FILE)

    def read(self) -> StoredSecrets:
        """The content.

        Raises:
            SecretFileError: missing, or not a secrets store; or what a rotation replaced is there, but unreadable.
        """
        try:
            body = json.loads(self.path.read_bytes())
        except (OSError, ValueError) as error:
            raise SecretFileError(
                f"secrets store {self.path.name}: cannot be read ({type(error).__name__}); "
                "the Secret needs that key, with the secrets store as JSON"
            ) from None
        if isinstance(body, dict) and (previous := self._previous()) is not None:
            body["previous"] = previous
        return StoredSecrets.from_json(body)

    def stamp(self) -> tuple[int, int, int] | None:
        """What changes when the volume of one of the Secrets is updated."""
        found = [_status(path) for path in (self.path, self.previous) if path is not None]
        if found[0] is None:
            return None
        # Both in one: of two files that change, neither the sum of times nor of inodes stays the same.
        first, second = found[0], found[-1] or (0, 0, 0)
        return first[0] + second[0], first[1] + second[1], first[2] + second[2]

    def _previous(self) -> Any:
        if self.previous is None:
            return None
        try:
            return json.loads(self.previous.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise SecretFileError(
                f"secrets store {self.previous.name}: cannot be read ({type(error).__name__}); "
                "end the overlap with `port-webhook rotate-secret --retire`"
            ) from None


def _status(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
