"""The folder of one local Port: its paths, its credentials, its private files (standard library only)."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path


class LocalPortError(RuntimeError):
    """Local Port cannot be started or its folder cannot be used; the message names the remedy."""


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """What one local Port is known by.

    Attributes:
        client_id, client_secret: the organisation's API credentials; the secret also signs deliveries.
        admin_token: bearer token of the `/_local` routes.
        storage_key: hex; encrypts organisation secrets at rest and authenticates access tokens.
    """

    client_id: str
    client_secret: str
    admin_token: str
    storage_key: str

    def __repr__(self) -> str:
        return f"Credentials(client_id={self.client_id!r})"


@dataclass(frozen=True, slots=True)
class Home:
    """Paths inside the folder of one local Port."""

    folder: Path

    @property
    def credentials_file(self) -> Path:
        return self.folder / "credentials.json"

    @property
    def endpoint_file(self) -> Path:
        return self.folder / "endpoint.json"

    @property
    def port_file(self) -> Path:
        return self.folder / "port"

    @property
    def start_lock(self) -> Path:
        return self.folder / "start.lock"

    @property
    def server_lock(self) -> Path:
        return self.folder / "server.lock"

    @property
    def database(self) -> Path:
        return self.folder / "state.sqlite3"

    @property
    def log_file(self) -> Path:
        return self.folder / "localport.log"

    def create(self) -> None:
        """Makes the folder, readable by its owner only."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def credentials(self) -> Credentials:
        """The credentials of this folder, made at the first call.

        Raises:
            LocalPortError: the file exists and is not what this function writes.
        """
        try:
            text = self.credentials_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            # The secret's first 32 bytes are an AES key (Port's rule), so all of it is random ASCII.
            made = Credentials(
                client_id=secrets.token_hex(24),
                client_secret=secrets.token_hex(32),
                admin_token=secrets.token_urlsafe(32),
                storage_key=secrets.token_hex(32),
            )
            names = ("client_id", "client_secret", "admin_token", "storage_key")
            write_private(self.credentials_file, json.dumps({name: getattr(made, name) for name in names}))
            return made
        try:
            fields = json.loads(text)
            return Credentials(**fields)
        except (ValueError, TypeError):
            raise LocalPortError(
                f"{self.credentials_file} is damaged. Delete the folder {self.folder} to start afresh"
            ) from None


def write_private(path: Path, text: str) -> None:
    """Writes a file of mode 0600 so that a reader sees the old content or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
