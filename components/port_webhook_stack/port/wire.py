"""The engine's messages and plain Python values.

The engine sends properties as a protobuf Struct in which every number is a double, an unknown value is a certain
string, and a secret is a map with a signature. Secrets are remembered by path, so that what a handler returns
under the same path is marked again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final

from google.protobuf import struct_pb2  # type: ignore[import-untyped]

from port_webhook_stack.port.handler import UNKNOWN, Properties

Path = tuple[str | int, ...]

# Constants of Pulumi's wire format, the same in all its SDKs.
_UNKNOWN_TEXT: Final = "04da6b54-80e4-46f7-96ec-b56ff0331ba9"
_SIGNATURE_KEY: Final = "4dabf18193072939515e22adb298388d"
_SECRET: Final = "1b47061264138c4ac30d75fd1eb44270"  # noqa: S105 - a marker, not a secret
_OUTPUT: Final = "d0e6a833031e9bbcd3f4e8bde6ca49a4"
_RESOURCE: Final = "5cf8f73096256a8f31e491e813e4eb8e"

_EXACT_INTEGERS: Final = 2**53
_PLAIN_KEY = re.compile(r'[^.\[\]"\s]+')


class UnsupportedValueError(Exception):
    """An asset or archive where only data is allowed; the text names the property."""


class Secrets:
    """Paths of secret values, with the values themselves so that they can be kept out of messages.

    A secret anywhere inside a list makes the whole list secret: its elements may move.
    """

    def __init__(self) -> None:
        self.paths: set[Path] = set()
        self._texts: set[str] = set()

    def add(self, path: Path, value: Any) -> None:
        listed = next((index for index, step in enumerate(path) if isinstance(step, int)), None)
        self.paths.add(path if listed is None else path[:listed])
        self._texts.update(text for text in _texts(value) if len(text) > 3)

    def add_names(self, names: Collection[str], values: Mapping[str, Any]) -> Secrets:
        """Mark top-level properties."""
        for name in names:
            if values.get(name) is not None:
                self.add((name,), values[name])
        return self

    def redact(self, message: str) -> str:
        """`message` without any of the values."""
        for text in sorted(self._texts, key=len, reverse=True):
            message = message.replace(text, "[secret]")
        return message


def decode(struct: struct_pb2.Struct, secrets: Secrets | None = None) -> Properties:
    """The plain value of `struct`; its secrets are added to `secrets`.

    Raises:
        UnsupportedValueError: it holds an asset or archive.
    """
    found = Secrets() if secrets is None else secrets
    return {key: _decode(value, (key,), found) for key, value in struct.fields.items()}


def encode(values: Mapping[str, Any], secrets: Secrets | None = None) -> struct_pb2.Struct:
    """`values` for the engine, with the paths of `secrets` marked."""
    paths = secrets.paths if secrets else frozenset()
    return struct_pb2.Struct(fields={key: _encode(value, (key,), paths) for key, value in values.items()})


def inexact_numbers(value: Any, path: Path = ()) -> list[Path]:
    """Paths of the integers that a double cannot hold exactly."""
    if isinstance(value, Mapping):
        return [found for key, item in value.items() for found in inexact_numbers(item, (*path, key))]
    if isinstance(value, list):
        return [found for index, item in enumerate(value) for found in inexact_numbers(item, (*path, index))]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _EXACT_INTEGERS:
        return [path]
    return []


def path_text(path: Iterable[str | int]) -> str:
    """`path` in Pulumi's notation: `a.b[0]["a key with dots."]`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step):
            text += f".{step}" if text else step
        else:
            escaped = step.replace('"', '\\"')
            text += f'["{escaped}"]'
    return text


def _decode(value: struct_pb2.Value, path: Path, secrets: Secrets) -> Any:
    match value.WhichOneof("kind"):
        case "string_value":
            return UNKNOWN if value.string_value == _UNKNOWN_TEXT else value.string_value
        case "bool_value":
            return value.bool_value
        case "number_value":
            number = value.number_value
            return int(number) if number.is_integer() else number
        case "list_value":
            return [
                _decode(item, (*path, index), secrets) for index, item in enumerate(value.list_value.values)
            ]
        case "struct_value":
            return _decode_map(value.struct_value.fields, path, secrets)
        case _:
            return None


def _decode_map(fields: Mapping[str, struct_pb2.Value], path: Path, secrets: Secrets) -> Any:
    signature = fields[_SIGNATURE_KEY].string_value if _SIGNATURE_KEY in fields else None
    if signature is None:
        return {key: _decode(item, (*path, key), secrets) for key, item in fields.items()}
    if signature in {_SECRET, _OUTPUT}:
        inner = _decode(fields["value"], path, secrets) if "value" in fields else UNKNOWN
        if signature == _SECRET or ("secret" in fields and fields["secret"].bool_value):
            secrets.add(path, inner)
        return inner
    if signature == _RESOURCE:
        name = "id" if "id" in fields else "urn"
        return _decode(fields[name], path, secrets)
    raise UnsupportedValueError(f"{path_text(path)} is an asset or archive, but must be plain data")


def _encode(value: Any, path: Path, secret_paths: Collection[Path]) -> struct_pb2.Value:
    if path in secret_paths:
        marked = {
            _SIGNATURE_KEY: struct_pb2.Value(string_value=_SECRET),
            "value": _encode(value, path, ()),
        }
        return struct_pb2.Value(struct_value=struct_pb2.Struct(fields=marked))
    if value is None:
        return struct_pb2.Value(null_value=struct_pb2.NULL_VALUE)
    if value is UNKNOWN:
        return struct_pb2.Value(string_value=_UNKNOWN_TEXT)
    if isinstance(value, bool):
        return struct_pb2.Value(bool_value=value)
    if isinstance(value, int | float):
        return struct_pb2.Value(number_value=value)
    if isinstance(value, str):
        return struct_pb2.Value(string_value=value)
    if isinstance(value, Mapping):
        fields = {str(key): _encode(item, (*path, str(key)), secret_paths) for key, item in value.items()}
        return struct_pb2.Value(struct_value=struct_pb2.Struct(fields=fields))
    if isinstance(value, list | tuple):
        items = [_encode(item, (*path, index), secret_paths) for index, item in enumerate(value)]
        return struct_pb2.Value(list_value=struct_pb2.ListValue(values=items))
    raise TypeError(f"{path_text(path)} holds a {type(value).__name__}, which is no property value")


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
