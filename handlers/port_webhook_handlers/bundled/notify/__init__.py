"""Tells a Slack channel when a service stops passing its checks: two definitions, no handler.

An automation watches the services and runs the action `slack_notify` through Port's own API; the action posts to
an incoming webhook of Slack, whose address is a secret of Port.
"""

from __future__ import annotations

from typing import Any

from port_webhook_handlers.port import (
    Action,
    Automation,
    StringInput,
    Webhook,
    entity_updated,
    port_api,
    self_service,
)

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


def on_service_failure(*, run_as: str | None = None) -> Automation:
    """The automation that runs `slack_notify` when a service's `passed` goes from `Passed` to `Not passed`.

    Args:
        run_as: e-mail of the user in whose name the action runs; the organisation's credentials if None.
    """
    return Automation(
        "slack_notify_on_service_failure",
        title="Notify Slack when a service fails",
        icon="Slack",
        trigger=entity_updated("service").when(
            '.diff.before.properties.passed == "Passed"', '.diff.after.properties.passed == "Not passed"'
        ),
        invocation_method=port_api.run_action(
            SLACK_NOTIFY.identifier,
            properties={
                "message": "Service {{ .event.diff.after.title }} has degraded from `Passed` to `Not passed`."
            },
            run_as=run_as,
        ),
        publish=True,
    )


def definitions(*, run_as: str | None = None) -> list[dict[str, Any]]:
    """Bodies of both definitions, for a stack whose `portSecrets` hold `SLACK_WEBHOOK_URL`.

    Args:
        run_as: see `on_service_failure`.
    """
    return [definition.to_body() for definition in (SLACK_NOTIFY, on_service_failure(run_as=run_as))]
