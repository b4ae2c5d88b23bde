"""Control of the payload: a JSON list in the format of Port's own agent, evaluated with JQ.

The first entry whose `enabled` is true wins. Fields: `method`, `url`, `body`, `headers`, `query`, `report`
(`status`, `link`, `summary`, `externalRunId`) and `fieldsToDecryptPaths`. JQ stands for itself or in the string
leaves of an object; an expression that fails or yields nothing gives null.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

_FIELDS: Final = ("method", "url", "body", "headers", "query", "report", "fieldsToDecryptPaths", "enabled")
_REPORT: Final = ("status", "link", "summary", "externalRunId")


class MappingError(ValueError):
    """A mapping file that cannot be used, or a field that cannot be decrypted; the message names the place."""


class Rule:
    """One entry of the file.

    Args:
        where: its place, for errors.
        entry: its content.

    Raises:
        MappingError: an unknown key, a wrong type, or JQ that does not compile.
    """

    def __init__(self, where: str, entry: object) -> None:
        if not isinstance(entry, dict):
            raise MappingError(f"{where}: must be an object")
        if unknown := sorted(set(entry) - set(_FIELDS)):
            raise MappingError(f"{where}.{unknown[0]}: unknown key; known are {', '.join(_FIELDS)}")
        self._entry = entry
        for name in ("method", "url"):
            if name in entry and not isinstance(entry[name], str):
                raise MappingError(f"{where}.{name}: must be a JQ expression in a string")
        report = entry.get("report", {})
        if not isinstance(report, dict) or set(report) - set(_REPORT):
            raise MappingError(f"{where}.report: may hold {', '.join(_REPORT)}")
        paths = entry.get("fieldsToDecryptPaths", [])
        if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
            raise MappingError(
                f"{where}.fieldsToDecryptPaths: must be a list of paths such as payload.properties.x"
            )
        self.decrypt: tuple[str, ...] = tuple(path.removeprefix(".") for path in paths)
        for name, value in entry.items():
            if name != "fieldsToDecryptPaths":
                _check(f"{where}.{name}", value)

    def matches(self, document: Mapping[str, Any]) -> bool:
        """Whether the entry is enabled for a message."""
        enabled = self._entry.get("enabled", True)
        return (evaluate(enabled, document) if isinstance(enabled, str) else enabled) is True

    def has(self, name: str) -> bool:
        """Whether the entry says something about a field."""
        return name in self._entry

    def get(self, name: str, document: Any) -> Any:
        """A field, evaluated."""
        return render(self._entry[name], document)


def load(path: Path) -> tuple[Rule, ...]:
    """Reads a mapping file.

    Raises:
        MappingError: not readable, not a list of rules, or JQ that does not compile.
    """
    try:
        entries = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MappingError(f"agent.mapping_file: {path} is no JSON file: {error}") from error
    if not isinstance(entries, list):
        raise MappingError(f"agent.mapping_file: {path} must hold a list")
    return tuple(Rule(f"{path.name}[{index}]", entry) for index, entry in enumerate(entries))


def render(template: Any, document: Any) -> Any:
    """A value with every string leaf replaced by what its expression yields."""
    if isinstance(template, str):
        return evaluate(template, document)
    if isinstance(template, dict):
        return {key: render(value, document) for key, value in template.items()}
    if isinstance(template, list):
        return [render(value, document) for value in template]
    return template


def evaluate(expression: str, document: Any) -> Any:
    """The first result of a JQ expression; None if it fails or yields nothing."""
    try:
        return next(iter(_program(expression).input_value(document)), None)
    except ValueError:
        return None


def decrypted(document: dict[str, Any], paths: Sequence[str], keys: Sequence[str]) -> dict[str, Any]:
    """The document with its encrypted inputs (`aes256-gcm`) in clear text; of an object that is its JSON text.

    Args:
        document: a message.
        paths: dotted, from the root of the message; array indices are numbers. Missing ones are passed over.
        keys: client secrets that may have encrypted them.

    Raises:
        MappingError: a value cannot be decrypted; a ciphertext is never passed on as if it were the value.
    """
    from port_webhook_handlers.port.encryption import DecryptionError, decrypt_aes256_gcm

    result = copy.deepcopy(document)
    for path in paths:
        *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        place: Any = result
        try:
            for part in parents:
                place = place[part]
            value = place[last]
        except (KeyError, IndexError, TypeError):
            continue
        if value is None:
            # An input that is not required.
            continue
        try:
            place[last] = decrypt_aes256_gcm(value, list(keys)).decode()
        except (DecryptionError, ValueError) as error:
            raise MappingError(f"{path} cannot be decrypted: {error}") from None
    return result


def _check(where: str, value: Any) -> None:
    if isinstance(value, str):
        try:
            _program(value)
        except ValueError as error:
            raise MappingError(f"{where}: is not JQ: {' '.join(str(error).split())[:200]}") from None
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(f"{where}.{key}", item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check(f"{where}[{index}]", item)


@lru_cache(maxsize=512)
def _program(expression: str) -> Any:
    import jq

    return jq.compile(expression)
