"""Posts runs to a worker's HTTP endpoint, with a token that is a secret of the stack."""

from __future__ import annotations

from port_webhook_handlers.bundled import outbound
from port_webhook_handlers.bundled.enqueue import Task, message_of
from port_webhook_handlers.bundled.options import own
from port_webhook_handlers.sdk import Failure, HandedOver, Result, RetryableError, Run, SettingError, action

TOKEN = "ENQUEUE_TOKEN"  # noqa: S105 - the name of a secret, not its value
"""The secret that holds the token."""

_KEYS = ("url", "header", "prefix", "private", "timeout_seconds")
_RESERVE_SECONDS = 10


@action(
    "enqueue_by_http",
    title="Hand over by HTTP",
    description="Posts the run to a worker, which goes on with it and reports.",
    icon="Webhook",
    operation="CREATE",
    secrets=[TOKEN],
    timeout_seconds=90,
    on_interrupt="retry",
)
def enqueue_by_http(inputs: Task, run: Run) -> Result:
    """Posts one message; the header Idempotency-Key holds the run's id, so that it may be repeated."""
    try:
        options = own(run, _KEYS)
        private = options.flag("private")
        seconds = options.number("timeout_seconds", 15, lowest=0.1, highest=60)
        headers = {
            "Content-Type": "application/json",
            "Idempotency-Key": run.idempotency_key,
            options.text("header", "Authorization"): options.text("prefix", "Bearer ")
            + run.secret(TOKEN).strip(),
        }
        try:
            target = outbound.parse(options.text("url"))
        except ValueError as error:
            raise options.error("url", str(error)) from None
        if target.scheme == "http" and not private:
            raise options.error("url", "must start with https://, or private must be true")
        body = message_of(inputs, run)
    except (SettingError, ValueError) as error:
        return Failure(str(error))
    try:
        answer = outbound.send_persistently(
            lambda left: outbound.send(
                "POST", target, headers=headers, body=body.encode(), private=private, seconds=left
            ),
            repeatable=True,
            attempts=3,
            seconds=max(1.0, run.seconds_left - _RESERVE_SECONDS),
            each_seconds=seconds,
            report=run.log,
        )
    except outbound.RefusedAddressError as error:
        return Failure(f"{error}.")
    except outbound.OutboundError as error:
        raise RetryableError(f"{error}.") from None
    if not 200 <= answer.status < 300:
        return Failure(f"{target.origin} answered {answer.status}, so nobody goes on with the run.")
    return HandedOver(f"Waiting for a worker: {target.origin} has taken the run.")
