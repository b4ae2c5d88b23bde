"""The folder of one local Port: its paths, its credentials, its private files.

Credentials are encrypted; their key lies in the user's state folder, so a copy of this folder cannot be used.
That does not protect against programs of the same user, who can read the key as well.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import os
import secrets
import time
from dataclasses import asdict, dataclass, replace
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
        former_secret: the client secret before the last rotation, until it is retired.
        former_until: seconds since the epoch until which the former secret gets access tokens; None: the new
            one is only staged, and the former one still signs.
    """

    client_id: str
    client_secret: str
    admin_token: str
    storage_key: str
    former_secret: str | None = None
    former_until: float | None = None

    def __repr__(self) -> str:
        return f"Credentials(client_id={self.client_id!r})"

    @classmethod
    def make(cls) -> Credentials:
        """New random ones."""
        return cls(secrets.token_hex(24), _client_secret(), secrets.token_urlsafe(32), secrets.token_hex(32))

    @property
    def is_staged(self) -> bool:
        """Whether a new client secret is known but not used for signing yet."""
        return self.former_secret is not None and self.former_until is None

    @property
    def signing_secret(self) -> str:
        """The client secret that signs deliveries and encrypts inputs."""
        return self.former_secret if self.is_staged and self.former_secret else self.client_secret

    def accepts(self, client_secret: str) -> bool:
        """Whether a client secret gets an access token now."""
        valid = [self.client_secret]
        if self.former_secret and (self.former_until is None or time.time() <= self.former_until):
            valid.append(self.former_secret)
        return any(hmac.compare_digest(client_secret.encode(), secret.encode()) for secret in valid)

    def stage(self) -> Credentials:
        """With a new client secret beside the one that signs; unchanged if there is one already."""
        if self.is_staged:
            return self
        return replace(
            self, client_secret=_client_secret(), former_secret=self.client_secret, former_until=None
        )

    def activate(self, overlap_seconds: float) -> Credentials:
        """With the new client secret signing and the former one accepted for a while."""
        return replace(self, former_until=time.time() + overlap_seconds) if self.is_staged else self

    def retire(self) -> Credentials:
        """Without the former client secret."""
        return replace(self, former_secret=None, former_until=None)


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
            LocalPortError: they cannot be read: the file is damaged, or its key is missing.
        """
        from cryptography.exceptions import InvalidTag

        from port_webhook_localport.encryption import unseal

        try:
            text = self.credentials_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            made = Credentials.make()
            self.save(made)
            return made
        key_file = None
        try:
            envelope = json.loads(text)
            key_file = _key_file(envelope["key"])
            key = bytes.fromhex(key_file.read_text(encoding="ascii"))
            plain = unseal(base64.b64decode(envelope["sealed"], validate=True), key, envelope["key"])
            return Credentials(**json.loads(plain))
        except FileNotFoundError:
            raise LocalPortError(
                f"the key of {self.credentials_file}, {key_file}, is missing. Restore it, or delete the folder "
                f"{self.folder} to start afresh"
            ) from None
        except (ValueError, TypeError, KeyError, binascii.Error, InvalidTag):
            raise LocalPortError(
                f"{self.credentials_file} is damaged. Delete the folder {self.folder} to start afresh"
            ) from None

    def save(self, credentials: Credentials) -> None:
        """Encrypts and replaces the credentials; makes their key if there is none."""
        from port_webhook_localport.encryption import seal

        name = self._key_name() or secrets.token_hex(12)
        key_file = _key_file(name)
        if not key_file.exists():
            key_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(key_file, secrets.token_hex(32))
        key = bytes.fromhex(key_file.read_text(encoding="ascii"))
        sealed = seal(json.dumps(asdict(credentials)), key, name)
        envelope = {"key": name, "sealed": base64.b64encode(sealed).decode("ascii")}
        write_private(self.credentials_file, json.dumps(envelope))

    def forget_key(self) -> None:
        """Removes the key of the credentials, which nobody can read any more."""
        name = self._key_name()
        if name is not None:
            _key_file(name).unlink(missing_ok=True)

    def _key_name(self) -> str | None:
        try:
            name = json.loads(self.credentials_file.read_text(encoding="utf-8"))["key"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return name if isinstance(name, str) and name.isalnum() else None


def _client_secret() -> str:
    # Its first 32 bytes are an AES key (Port's rule), so all of it is random ASCII.
    return secrets.token_hex(32)


def _key_file(name: str) -> Path:
    if not name.isalnum():
        raise ValueError("not the name of a key")
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "port-webhook-stack" / f"localport-{name}.key"


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
