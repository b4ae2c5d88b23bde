"""The secrets of an agent in a container: environment variables, or files that `<name>_FILE` names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from port_webhook_handlers.runtime.secret_file import (
    ApiCredentials,
    SecretFileError,
    SigningSecret,
    StoredSecrets,
)

KAFKA_PASSWORD: Final = "KAFKA_PASSWORD"  # noqa: S105 - the name of a secret
_NAMES: Final = (
    "PORT_CLIENT_ID",
    "PORT_CLIENT_SECRET",
    "PORT_SIGNING_SECRETS",
    "PORT_DECRYPTION_KEYS",
    KAFKA_PASSWORD,
)


def trigger_token(name: str, secrets: Mapping[str, str], environment: Mapping[str, str]) -> str | None:
    """The trigger token of a GitLab project, from the stack's secrets or the environment.

    Args:
        name: `<group>_<project>`. A message says these, so the agent's own secrets are nobody's token.
        secrets: the stack's, by name.
        environment: variables.
    """
    return None if name in _NAMES else secrets.get(name) or environment.get(name)


class EnvironmentSecrets:
    """Reads as `SecretFile` does: `LiveSecrets` notices files that are replaced.

    `PORT_SIGNING_SECRETS` and `PORT_DECRYPTION_KEYS` are lists separated by blanks; both default to the client
    secret (Port's rule: it signs and encrypts with that).
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def read(self) -> StoredSecrets:
        """The secrets now.

        Raises:
            SecretFileError: a required one is missing, or a file cannot be read.
        """
        values = {name: self._value(name) for name in _NAMES}
        for name in _NAMES[:2]:
            if not values[name]:
                raise SecretFileError(f"{name}: is missing in the environment; set it, or {name}_FILE")
        client_secret = values["PORT_CLIENT_SECRET"]
        signing = values["PORT_SIGNING_SECRETS"].split() or [client_secret]
        password = values[KAFKA_PASSWORD]
        return StoredSecrets(
            tuple(SigningSecret(value) for value in signing),
            ApiCredentials(values["PORT_CLIENT_ID"], client_secret),
            tuple(values["PORT_DECRYPTION_KEYS"].split() or [client_secret]),
            {KAFKA_PASSWORD: password} if password else {},
        )

    def stamp(self) -> tuple[int, int, int] | None:
        """What changes when a file is replaced."""
        times = sizes = nodes = 0
        for name in _NAMES:
            path = self._environment.get(f"{name}_FILE")
            if path:
                try:
                    status = Path(path).stat()
                except OSError:
                    return None
                times, sizes, nodes = (
                    times + status.st_mtime_ns,
                    sizes + status.st_size,
                    nodes + status.st_ino,
                )
        return times, sizes, nodes

    def _value(self, name: str) -> str:
        path = self._environment.get(f"{name}_FILE")
        if not path:
            return self._environment.get(name, "")
        try:
            return Path(path).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise SecretFileError(f"{name}_FILE: {path} cannot be read ({error.strerror})") from None
