"""Faults on demand, for tests of clients and listeners; set through the admin routes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from port_webhook_localport.schemas import BOOLEAN, STRING, Schema, check, closed, one_of
from port_webhook_localport.web import ApiError

_CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "missing_permissions",
    404: "not_found",
    409: "identifier_taken",
    422: "invalid_request",
    429: "too_many_requests",
    500: "internal_error",
}
_POSITIVE: Schema = {"type": "integer", "minimum": 1}
_SECONDS: Schema = {"type": "number", "minimum": 0, "maximum": 3600}
_PERCENT: Schema = {"type": "number", "minimum": 0, "maximum": 100}
API_FAULT = closed(
    "prefix",
    prefix=STRING,
    method=STRING,
    status={"type": "integer", "minimum": 400, "maximum": 599},
    code=STRING,
    count=_POSITIVE,
    percent=_PERCENT,
    after=BOOLEAN,
    delaySeconds=_SECONDS,
    drop=BOOLEAN,
    reset=one_of("delay", "epoch"),
    resetSeconds=_SECONDS,
    retryAfterSeconds=_SECONDS,
)
DELIVERY_FAULT = closed(
    "",
    action=STRING,
    count=_POSITIVE,
    percent=_PERCENT,
    signature=one_of("wrong", "missing"),
    timestamp=one_of("old", "future", "milliseconds", "garbage"),
    duplicates=_POSITIVE,
    delaySeconds=_SECONDS,
    pauseSeconds=_SECONDS,
)
FAULTS = closed(
    "",
    api={"type": "array", "items": API_FAULT},
    delivery={"type": "array", "items": DELIVERY_FAULT},
)


@dataclass(slots=True)
class _Armed:
    """One fault and how often it still happens (None: without end)."""

    rule: dict[str, Any]
    left: int | None

    def strikes(self) -> bool:
        if self.left == 0:
            return False
        # Not a secret: which share of calls fails.
        if random.uniform(0, 100) >= self.rule.get("percent", 100):  # noqa: S311
            return False
        if self.left is not None:
            self.left -= 1
        return True


@dataclass(slots=True)
class Faults:
    """The armed faults. A rule without `count` happens every time, with `percent` only to that share."""

    api: list[_Armed] = field(default_factory=list)
    delivery: list[_Armed] = field(default_factory=list)

    def replace(self, body: Any) -> None:
        """Arms these faults instead of the present ones.

        Raises:
            ApiError: 422, see the schemas of this module.
        """
        check(FAULTS, body)
        self.api = [_Armed(rule, rule.get("count")) for rule in body.get("api", [])]
        self.delivery = [_Armed(rule, rule.get("count")) for rule in body.get("delivery", [])]

    def for_call(self, method: str, path: str) -> dict[str, Any] | None:
        """The fault that this call meets, if any; counts it."""
        for armed in self.api:
            rule = armed.rule
            if (
                path.startswith(rule["prefix"])
                and rule.get("method", method) in (method, "*")
                and armed.strikes()
            ):
                return rule
        return None

    def for_delivery(self, action: str) -> dict[str, Any]:
        """The fault that this delivery meets, empty if none; counts it."""
        for armed in self.delivery:
            if armed.rule.get("action", action) == action and armed.strikes():
                return armed.rule
        return {}

    def describe(self) -> dict[str, Any]:
        return {
            name: [{**armed.rule, "left": armed.left} for armed in armed_faults]
            for name, armed_faults in (("api", self.api), ("delivery", self.delivery))
        }


def error_of(rule: dict[str, Any]) -> ApiError:
    """The error reply of an API fault; 500 when it names no status."""
    status = rule.get("status", 500)
    code = rule.get("code") or _CODES.get(status, "internal_error")
    return ApiError(status, code, "this failure was asked for through /_local/faults")
