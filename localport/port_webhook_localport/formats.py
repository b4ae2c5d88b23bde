"""Formats of strings that local Port checks."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from jsonschema import FormatChecker  # type: ignore[import-untyped]

FORMATS = FormatChecker(formats=())


def parse_time(text: str) -> datetime | None:
    """An ISO 8601 date and time with an offset, else None."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return None
    return parsed if parsed.tzinfo is not None else None


def _identifier(extra: str) -> Callable[[str], bool]:
    allowed = frozenset("0123456789" + extra)

    def valid(text: str) -> bool:
        return bool(text) and text not in (".", "..") and all(c in allowed or c.isalpha() for c in text)

    return valid


def _url(text: str) -> bool:
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return bool(parts.scheme and (parts.netloc or parts.path)) and not re.search(r"\s", text)


def _email(text: str) -> bool:
    return re.fullmatch(r"[^@\s]+@[^@\s]+", text) is not None


def _is_time(text: str) -> bool:
    return parse_time(text) is not None


def _ip(version: int) -> Callable[[str], bool]:
    def valid(text: str) -> bool:
        from ipaddress import ip_address

        try:
            return ip_address(text).version == version
        except ValueError:
            return False

    return valid


_CHECKS: dict[str, Callable[[str], bool]] = {
    "identifier": _identifier("@_.+:=-"),
    "blueprint-identifier": _identifier("@_.+:\\/-"),
    "entity-identifier": _identifier("@_.+:\\/=-"),
    "url": _url,
    "email": _email,
    "date-time": _is_time,
    "timer": _is_time,
    "ipv4": _ip(4),
    "ipv6": _ip(6),
}


def _register(name: str, check: Callable[[str], bool]) -> None:
    def valid(value: Any) -> bool:
        return check(value) if isinstance(value, str) else True

    FORMATS.checks(name)(valid)


for _name, _check in _CHECKS.items():
    _register(_name, _check)
