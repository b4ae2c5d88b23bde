"""Deletes resources whose time is over, and tells their owner by e-mail."""

from __future__ import annotations

from port_webhook_handlers.bundled.catalog import Catalog
from port_webhook_handlers.bundled.notify.mail import PASSWORD, MailMessage, notify_by_mail
from port_webhook_handlers.bundled.resource import tear_down
from port_webhook_handlers.bundled.resource.kinds import SECRET
from port_webhook_handlers.sdk import (
    Failure,
    Result,
    RetryableError,
    Run,
    SettingError,
    Success,
    automation,
    triggers,
)


@automation(
    "expire_resource",
    trigger=triggers.timer_expired("resource", "expiresAt"),
    title="Delete a resource that has expired",
    icon="Clock",
    secrets=[SECRET, PASSWORD],
    on_interrupt="retry",
)
def expire_resource(run: Run) -> Result:
    """Tears the resource down as `delete_resource` does; an owner that cannot be told changes nothing about that."""
    entity = run.event.after_entity if run.event else None
    if entity is None:
        return Failure("The event holds no entity, so nothing was deleted.")
    try:
        resource = Catalog.of(run.settings).resource
    except SettingError as error:
        return Failure(str(error))
    result = tear_down(run, entity)
    owner = resource.value(entity, "owner")
    if not isinstance(owner, str) or not owner:
        return _with(result, "It has no owner to tell.")
    gone = isinstance(result, Success)
    message = MailMessage(
        to=[owner],
        subject=f"Resource {entity.identifier} {'has expired' if gone else 'could not be deleted'}",
        message=_joined(f"{entity.identifier} has reached its end", result.summary),
    )
    try:
        told = notify_by_mail(message, run)
    except RetryableError as error:
        told = Failure(str(error))
    note = f"{owner} was told." if isinstance(told, Success) else f"{owner} was not told: {told.summary}"
    return _with(result, note)


def _with(result: Result, note: str) -> Result:
    return type(result)(_joined(result.summary, note))


def _joined(*sentences: str | None) -> str:
    return " ".join(f"{sentence.removesuffix('.')}." for sentence in sentences if sentence)
