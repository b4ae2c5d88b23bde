"""What every route shares: a parsed call, a reply, an error in Port's form."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


@dataclass(slots=True)
class ApiError(Exception):
    """An error reply: `{"ok": false, "error": code, "message": …, "details": …}` (Port's shape)."""

    status: int
    code: str
    message: str
    details: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.status} {self.code}: {self.message}"

    def body(self) -> dict[str, Any]:
        return {"ok": False, "error": self.code, "message": self.message, "details": self.details}


def invalid_request(message: str) -> ApiError:
    return ApiError(422, "invalid_request", message)


def not_found(resource: str, identifier: str, by_field: str = "identifier") -> ApiError:
    return ApiError(
        404,
        "not_found",
        f'{resource} with {by_field} "{identifier}" was not found',
        {"resource": resource, "byField": by_field, "withValue": identifier},
    )


def identifier_taken(resource: str, identifier: str) -> ApiError:
    return ApiError(
        409,
        "identifier_taken",
        f'{resource} with identifier "{identifier}" already exists',
        {"resource": resource, "byField": "identifier", "withValue": identifier},
    )


def not_supported(what: str) -> ApiError:
    return ApiError(
        501, "not_supported", f"local Port does not support {what}. Use a real organisation for it"
    )


@dataclass(slots=True)
class Call:
    """One request, authenticated and parsed.

    Attributes:
        path: parameters of the route, percent-decoded.
        query: query parameters; the last one of a repeated name.
        lists: query parameters that may repeat, written `name[]` or `name`.
        headers: lower-case names.
        body: parsed JSON; None when the request has no body.
        chain: automations whose run led to this call, oldest first.
        causing_run: id of the run whose invocation is this call.
    """

    path: dict[str, str]
    query: Mapping[str, str]
    lists: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: Any
    chain: tuple[str, ...] = ()
    causing_run: str | None = None

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean query parameter.

        Raises:
            ApiError: 422, neither `true` nor `false`.
        """
        text = self.query.get(name)
        if text is None:
            return default
        if text not in ("true", "false"):
            raise invalid_request(f"query parameter {name} must be true or false")
        return text == "true"

    def number(self, name: str, default: int, low: int, high: int) -> int:
        """An integer query parameter within bounds.

        Raises:
            ApiError: 422, not an integer or outside.
        """
        text = self.query.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 12 and low <= int(text) <= high):
            raise invalid_request(f"query parameter {name} must be a whole number from {low} to {high}")
        return int(text)


@dataclass(slots=True)
class Reply:
    """A successful reply; `ok: true` is added."""

    body: dict[str, Any]
    status: int = 200


def parse_json(raw: bytes) -> Any:
    """A request's JSON.

    Raises:
        ApiError: 400, not JSON (NaN, numbers out of range and lone surrogates included).
    """
    try:
        value = json.loads(raw, parse_constant=_refuse_constant, parse_float=_finite)
        if b"\\u" in raw:
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ApiError(400, "bad_request", "the body is not valid JSON") from None
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def compact(value: Any) -> str:
    """Compact JSON text, non-ASCII characters as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def now() -> str:
    """The current time as Port writes it: ISO 8601, milliseconds, Z."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def make_id(prefix: str) -> str:
    """A new id in Port's form: prefix, underscore, 16 characters."""
    return f"{prefix}_" + "".join(secrets.choice(_ALPHABET) for _ in range(16))
