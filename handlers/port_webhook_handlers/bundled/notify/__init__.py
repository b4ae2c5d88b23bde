"""Tells a Slack channel when a service stops passing its checks: two definitions, no handler.

The modules `slack`, `teams` and `mail` beside it hold handlers, for messages whose address must not be in Port.

An automation watches the services and runs the action `slack_notify` through Port's own API; the action posts to
an incoming webhook of Slack, whose address is a secret of Port.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from port_webhook_handlers.bundled.catalog import Catalog
from port_webhook_handlers.port import (
    Action,
    Automation,
    StringInput,
    Webhook,
    entity_updated,
    port_api,
    self_service,
)
from port_webhook_handlers.sdk import SettingError

SECRET = "SLACK_WEBHOOK_URL"  # noqa: S105 - the name of a secret, not its value
"""The secret in Port that holds the address of the incoming webhook, which is a credential by itself."""

SLACK_NOTIFY = Action(
    "slack_notify",
    title="Notify Slack",
    icon="Slack",
    description="Posts a message to the team's Slack channel",
    trigger=self_service(
        "CREATE",
        inputs={"message": StringInput(title="Message", min_length=1, max_length=3000)},
        required=["message"],
    ),
    # Synchronized, so that the run ends as Slack's answer says.
    invocation_method=Webhook(
        f"{{{{ .secrets.{SECRET} }}}}",
        synchronized=True,
        method="POST",
        body={"text": "{{ .inputs.message }}"},
    ),
)


_TITLES = {SLACK_NOTIFY.identifier: "Notify Slack"}


def on_service_failure(
    *,
    run_as: str | None = None,
    action: str = SLACK_NOTIFY.identifier,
    inputs: Mapping[str, Any] | None = None,
    catalog: Catalog | None = None,
) -> Automation:
    """The automation that runs an action when a service's `passed` goes from `Passed` to `Not passed`.

    Args:
        action: identifier of the action, such as `notify_by_mail`; it gets the input `message`.
        inputs: its other inputs.
        run_as: e-mail of the user in whose name the action runs; the organisation's credentials if None.
        catalog: names of blueprint and property; the default ones if None.

    Raises:
        SettingError: the catalog has no property `passed`.
    """
    service = (catalog or Catalog.of({})).service
    passed = service.property("passed")
    if passed is None:
        raise SettingError(
            "catalog.service.properties.passed: is null, but the automation is about it; name it, or leave that out"
        )
    return Automation(
        f"{action}_on_service_failure",
        title=f"{_TITLES.get(action, action)} when a service fails",
        icon="Slack" if action == SLACK_NOTIFY.identifier else "Alert",
        trigger=entity_updated(service.blueprint).when(
            f'.diff.before.properties.{passed} == "Passed"',
            f'.diff.after.properties.{passed} == "Not passed"',
        ),
        invocation_method=port_api.run_action(
            action,
            properties={
                **(inputs or {}),
                "message": "Service {{ .event.diff.after.title }} has degraded from `Passed` to `Not passed`.",
            },
            run_as=run_as,
        ),
        publish=True,
    )


def definitions(*, run_as: str | None = None, catalog: Catalog | None = None) -> list[dict[str, Any]]:
    """Bodies of both definitions, for a stack whose `portSecrets` hold `SLACK_WEBHOOK_URL`.

    Args:
        run_as, catalog: see `on_service_failure`.
    """
    failure = on_service_failure(run_as=run_as, catalog=catalog)
    return [definition.to_body() for definition in (SLACK_NOTIFY, failure)]
