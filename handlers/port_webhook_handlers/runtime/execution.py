"""What a handler's child process is told and what it tells, the same on every target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from port_webhook_handlers.port.encryption import DecryptionError, decrypt_aes256_gcm, decrypt_client_side
from port_webhook_handlers.runtime.claims import Answer
from port_webhook_handlers.runtime.manifest import Route

MAX_REPORTS: Final = 2_000
"""How many reports of one run are passed on."""

_MAX_LOG_CHARACTERS: Final = 8_000

# An interrupted run that may run twice is started so often, whatever its `max_attempts`.
STARTS_AFTER_INTERRUPTS: Final = 3

HANDED_OVER: Final = "HANDED_OVER"
"""Another system goes on with the run: the listener is done with it, Port's run stays open."""

STATUSES: Final = ("SUCCESS", "FAILURE", HANDED_OVER)


@dataclass(slots=True)
class Outcome:
    """How a run in a child ended.

    Attributes:
        status: `SUCCESS`, `FAILURE` or `HANDED_OVER`.
        summary, link, response: what the handler gave.
        retryable: the handler asked for another attempt.
        error_type: class of the exception that ended it; "" if it returned.
        interrupted: its process ended without a result.
        timed_out: it was killed at its deadline.
    """

    status: str
    summary: str | None = None
    link: Any = None
    response: Any = None
    retryable: bool = False
    error_type: str = ""
    interrupted: bool = False
    timed_out: bool = False


def handler_request(
    run_id: str,
    route: Route,
    body: Mapping[str, Any],
    *,
    attempt: int,
    deadline: float,
    secrets: Mapping[str, str],
    decryption: Sequence[str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The request that `sdk.invoke` takes.

    Args:
        run_id: Port's run id.
        route: the route that was invoked.
        body: the verified body.
        attempt: 1 for the first start.
        deadline: seconds since the epoch at which the child is killed.
        secrets: all secrets at hand; the request gets those that the handler declares.
        decryption: keys of encrypted inputs, tried in order.
        settings: settings of the handler.

    Raises:
        DecryptionError: an encrypted input cannot be read with any key.
    """
    inputs = dict(route.payload.inputs_of(body) or {})
    for name in route.encrypted_inputs:
        if inputs.get(name) is not None:
            inputs[name] = _decrypt(inputs[name], decryption)
    return {
        "run": {
            "id": run_id,
            "action": route.action,
            **route.payload.context_of(body),
            "attempt": attempt,
            "deadline": deadline,
            "idempotency_key": run_id,
        },
        "inputs": inputs,
        "handler": route.handler,
        "secrets": {name: secrets[name] for name in route.secrets if name in secrets},
        "settings": dict(settings),
    }


def reports_of(
    message: Mapping[str, Any], redact: Callable[[str], str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and body of the reports that a child's message asks for, without secrets."""
    for key, value in message.items():
        if key == "log":
            yield "log", {"message": redact(str(value))[:_MAX_LOG_CHARACTERS]}
        elif key in ("progress", "status_label"):
            yield "patch", {"statusLabel": redact(str(value))}
        elif key == "summary":
            yield "patch", {"summary": redact(str(value))}
        elif key == "link":
            yield "patch", {"link": value}
        elif key == "entity" and isinstance(value, dict):
            yield "entity", value


def _decrypt(value: str, keys: Sequence[str]) -> str:
    pem = [key for key in keys if key.lstrip().startswith("-----BEGIN")]
    secrets = [key for key in keys if key not in pem]
    try:
        if pem and not secrets:
            return decrypt_client_side(value, pem).decode()
        try:
            return decrypt_aes256_gcm(value, secrets).decode()
        except DecryptionError:
            if not pem:
                raise
            return decrypt_client_side(value, pem).decode()
    except DecryptionError:
        raise
    except ValueError as error:
        raise DecryptionError(
            str(error) if not isinstance(error, UnicodeDecodeError) else "it is not text"
        ) from error


def starts_again(route: Route, attempt: int, outcome: Outcome) -> bool:
    """Whether a run that ended so is started once more.

    Args:
        route: its route.
        attempt: how often it was started, counted from one.
        outcome: how the last start ended.
    """
    limit = route.max_attempts
    if outcome.interrupted:
        limit = max(limit, STARTS_AFTER_INTERRUPTS)
    repeatable = outcome.retryable or (
        route.on_interrupt == "retry" and (outcome.interrupted or outcome.timed_out)
    )
    return repeatable and attempt < limit


def answer_of(run_id: str, outcome: Outcome) -> Answer:
    """What the sender of a synchronous run is answered; a failure is a 4xx or 5xx."""
    if outcome.status == "SUCCESS":
        if outcome.response is not None:
            return Answer(200, outcome.response)
        body = {"runId": run_id, "status": "SUCCESS", "summary": outcome.summary, "link": outcome.link}
        return Answer(200, {key: value for key, value in body.items() if value is not None})
    if outcome.timed_out:
        status, reason = 504, "timed_out"
    elif outcome.interrupted:
        status, reason = 500, "interrupted"
    elif outcome.error_type:
        status, reason = 500, "handler_error"
    else:
        status, reason = 422, "handler_failed"
    body = {"error": reason, "message": outcome.summary, "link": outcome.link, "response": outcome.response}
    return Answer(status, {key: value for key, value in body.items() if value is not None})
