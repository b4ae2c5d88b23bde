"""The secrets store in a cluster: a Secret mounted as a file, replaced in place when it changes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from port_webhook_handlers.runtime.secret_file import SecretFileError, StoredSecrets


@dataclass(frozen=True, slots=True)
class MountedSecrets:
    """A `secrets.json` in the format of the secrets store."""

    path: Path

    def read(self) -> StoredSecrets:
        """The content.

        Raises:
            SecretFileError: missing, or not a secrets store.
        """
        try:
            body = json.loads(self.path.read_bytes())
        except (OSError, ValueError) as error:
            raise SecretFileError(
                f"secrets store {self.path.name}: cannot be read ({type(error).__name__}); "
                "the Secret needs that key, with the secrets store as JSON"
            ) from None
        return StoredSecrets.from_json(body)

    def stamp(self) -> tuple[int, int, int] | None:
        """What changes when the Secret's volume is updated."""
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
