"""The secrets store on this machine: one AES-256-GCM file, its key in a file elsewhere.

It protects copies of the state folder (backups, clones, archives), not against programs of the same user,
who can read the key as well.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol

from port_webhook_handlers.runtime.files import write_private

_MAGIC: Final = b"PWS1"
_NONCE_BYTES: Final = 12
_KEY_BYTES: Final = 32
_LOOK_SECONDS: Final = 0.2


class SecretFileError(Exception):
    """The secrets store cannot be read or written. The message holds no secret."""


@dataclass(frozen=True, slots=True)
class SigningSecret:
    """A secret that requests may be signed with.

    Attributes:
        value: the secret's text.
        not_after: seconds since the epoch after which it is refused; None: no end.
    """

    value: str = field(repr=False)
    not_after: float | None = None


@dataclass(frozen=True, slots=True)
class ApiCredentials:
    """Credentials for Port's API."""

    client_id: str
    client_secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class StoredSecrets:
    """Everything in the secrets store.

    Attributes:
        signing: secrets accepted for signatures, the newest first.
        api: credentials of reports to Port; None: runs cannot be reported.
        decryption: keys for encrypted inputs (client secret, or a private key in PEM), tried in order.
        secrets: name to value, for handlers that declare the name.
        previous: signing secrets of before a rotation, each with its end; until then they verify and decrypt too.
    """

    signing: tuple[SigningSecret, ...] = ()
    api: ApiCredentials | None = None
    decryption: tuple[str, ...] = field(default=(), repr=False)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    previous: tuple[SigningSecret, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The plain content of the file."""
        return {
            "signing": [{"value": item.value, "not_after": item.not_after} for item in self.signing],
            "api": None
            if self.api is None
            else {"client_id": self.api.client_id, "client_secret": self.api.client_secret},
            "decryption": list(self.decryption),
            "secrets": dict(self.secrets),
            "previous": [{"value": item.value, "not_after": item.not_after} for item in self.previous],
        }

    @classmethod
    def from_json(cls, body: object) -> StoredSecrets:
        """Reads the plain content of the file.

        Raises:
            SecretFileError: a key is unknown or has a wrong type; values are not shown.
        """
        known = {"signing", "api", "decryption", "secrets", "previous"}
        if not isinstance(body, dict) or set(body) - known:
            raise SecretFileError(
                f"secrets store: must be an object with the keys {', '.join(sorted(known))}"
            )
        signing, previous = (
            tuple(_signing(item, f"{key}[{index}]") for index, item in enumerate(_list(body, key)))
            for key in ("signing", "previous")
        )
        api = body.get("api")
        if api is not None and not (_is_text_map(api) and set(api) == {"client_id", "client_secret"}):
            raise SecretFileError("secrets store: api must hold client_id and client_secret, both strings")
        decryption = _list(body, "decryption")
        if not all(isinstance(item, str) and item for item in decryption):
            raise SecretFileError("secrets store: decryption must be a list of non-empty strings")
        named = body.get("secrets", {})
        if not _is_text_map(named):
            raise SecretFileError("secrets store: secrets must map names to strings")
        credentials = None if api is None else ApiCredentials(**api)
        return cls(signing, credentials, tuple(decryption), named, previous)

    def active_signing(self, now: float) -> list[str]:
        """The signing secrets that have not ended at `now` (seconds since the epoch)."""
        return [
            item.value
            for item in (*self.signing, *self.previous)
            if item.not_after is None or now <= item.not_after
        ]


@dataclass(frozen=True, slots=True)
class SecretFile:
    """An encrypted file and the file of its key.

    Attributes:
        path: the encrypted file.
        key_path: 32 random bytes in hex, mode 0600; created by the first `write`.
    """

    path: Path
    key_path: Path

    def read(self) -> StoredSecrets:
        """Decrypts the store.

        Raises:
            SecretFileError: file or key is missing, readable by others, or not intact.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise SecretFileError(
                f"secrets store {self.path}: cannot be read ({error.strerror}); deploy the stack again"
            ) from error
        start = len(_MAGIC) + _NONCE_BYTES
        if not data.startswith(_MAGIC) or len(data) < start:
            raise SecretFileError(
                f"secrets store {self.path}: is not a secrets store; deploy the stack again"
            )
        try:
            plain = AESGCM(self.key()).decrypt(data[len(_MAGIC) : start], data[start:], _MAGIC)
        except InvalidTag as error:
            raise SecretFileError(
                f"secrets store {self.path}: was changed, or {self.key_path} is not its key; "
                "restore the key or deploy the stack again"
            ) from error
        return StoredSecrets.from_json(json.loads(plain))

    def write(self, content: StoredSecrets) -> None:
        """Encrypts and replaces the store; makes the key if there is none.

        Raises:
            SecretFileError: the key is unusable, or the files cannot be written.
        """
        import secrets

        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = secrets.token_bytes(_NONCE_BYTES)
        plain = json.dumps(content.to_json(), separators=(",", ":")).encode()
        try:
            if not self.key_path.exists():
                write_private(self.key_path, secrets.token_hex(_KEY_BYTES).encode() + b"\n")
            sealed = AESGCM(self.key()).encrypt(nonce, plain, _MAGIC)
            write_private(self.path, _MAGIC + nonce + sealed)
        except OSError as error:
            raise SecretFileError(
                f"secrets store {error.filename or self.path}: cannot be written ({error.strerror})"
            ) from error

    def delete(self, *, with_key: bool = False) -> None:
        """Removes the store, and on demand its key; nothing happens if they are not there."""
        self.path.unlink(missing_ok=True)
        if with_key:
            self.key_path.unlink(missing_ok=True)

    def key(self) -> bytes:
        """The key, 32 bytes.

        Raises:
            SecretFileError: missing, readable by others, or not a key.
        """
        try:
            with self.key_path.open("rb") as stream:
                mode = os.fstat(stream.fileno()).st_mode
                text = stream.read(_KEY_BYTES * 2 + 2).strip()
        except OSError as error:
            raise SecretFileError(
                f"key of the secrets store {self.key_path}: cannot be read ({error.strerror}); "
                "without it the store cannot be opened: restore it, or delete the store and deploy again"
            ) from error
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise SecretFileError(
                f"key of the secrets store {self.key_path}: others can read it; run chmod 600 on it"
            )
        try:
            key = bytes.fromhex(text.decode("ascii"))
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            raise SecretFileError(
                f"key of the secrets store {self.key_path}: is not {_KEY_BYTES} bytes in hex"
            )
        return key

    def stamp(self) -> tuple[int, int, int] | None:
        """What changes when the file is replaced (time, size, inode); None if it is missing."""
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def _signing(item: object, place: str) -> SigningSecret:
    where = f"secrets store: {place}"
    if not isinstance(item, dict) or set(item) - {"value", "not_after"}:
        raise SecretFileError(f"{where} must be an object with value and not_after")
    value, not_after = item.get("value"), item.get("not_after")
    # An empty key would accept what anybody can sign.
    if not isinstance(value, str) or not value:
        raise SecretFileError(f"{where}.value must be a non-empty string")
    if not_after is not None and (isinstance(not_after, bool) or not isinstance(not_after, int | float)):
        raise SecretFileError(f"{where}.not_after must be seconds since the epoch, or null")
    return SigningSecret(value, not_after)


def _list(body: Mapping[str, Any], key: str) -> list[Any]:
    value = body.get(key, [])
    if not isinstance(value, list):
        raise SecretFileError(f"secrets store: {key} must be a list")
    return value


def _is_text_map(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(key, str) and isinstance(item, str) for key, item in value.items()
    )


class SecretSource(Protocol):
    """Where a secrets store's content comes from."""

    def read(self) -> StoredSecrets:
        """The content now; raises SecretFileError."""
        ...

    def stamp(self) -> tuple[int, int, int] | None:
        """What changes with the content."""
        ...


class LiveSecrets:
    """The content of a secrets store, read again when the file is replaced.

    A store that cannot be read any more leaves the last good content in force: a half-finished rotation must
    not turn valid requests away.

    Args:
        file: the store.
        on_change: called with new content, and once with the first.
        on_error: called once for each unreadable state of the file.

    Raises:
        SecretFileError: the store cannot be read now.
    """

    def __init__(
        self,
        file: SecretSource,
        on_change: Callable[[StoredSecrets], None] = lambda content: None,
        on_error: Callable[[SecretFileError], None] = lambda error: None,
    ) -> None:
        self._file = file
        self._on_change = on_change
        self._on_error = on_error
        self._look_again = 0.0
        self._stamp = file.stamp()
        self._take(file.read())

    @property
    def content(self) -> StoredSecrets:
        """The store's content now; the file is looked at a few times a second only."""
        if time.monotonic() >= self._look_again:
            self.refresh()
        return self._content

    def signing(self, now: float) -> list[bytes]:
        """The signing secrets in force at `now` (seconds since the epoch).

        The file is looked at a few times a second only; who finds no secret that fits calls `refresh`.
        """
        if time.monotonic() >= self._look_again:
            self.refresh()
        if self._endless:
            return self._signing
        return [value.encode() for value in self._content.active_signing(now)]

    def refresh(self) -> bool:
        """Looks at the file now; whether it was replaced."""
        self._look_again = time.monotonic() + _LOOK_SECONDS
        stamp = self._file.stamp()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            self._take(self._file.read())
        except SecretFileError as error:
            self._on_error(error)
        return True

    def _take(self, content: StoredSecrets) -> None:
        # Inputs that were encrypted before a rotation may arrive after it, for example once they are approved.
        former = (item.value for item in content.previous if item.value not in content.decryption)
        content = replace(content, decryption=(*content.decryption, *former))
        self._content = content
        self._signing = [item.value.encode() for item in content.signing]
        self._endless = all(item.not_after is None for item in (*content.signing, *content.previous))
        self._on_change(content)
