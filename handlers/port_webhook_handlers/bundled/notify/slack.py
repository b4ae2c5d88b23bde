"""Posts a message to a Slack channel, through an incoming webhook whose address is a secret of the stack."""

from __future__ import annotations

from typing import Annotated

from port_webhook_handlers.bundled.notify import _chat
from port_webhook_handlers.sdk import Failure, Field, Inputs, MultiLine, Result, Run, SettingError, action

URL = "SLACK_URL"
"""The secret that holds the address."""

_HOSTS = ("hooks.slack.com", "hooks.slack-gov.com")


class SlackMessage(Inputs):
    """What the form asks."""

    message: Annotated[MultiLine, Field(title="Message", min_length=1, max_length=3000)]


@action(
    "notify_by_slack",
    title="Notify by Slack",
    description="Posts a message to the team's Slack channel.",
    icon="Slack",
    operation="CREATE",
    secrets=[URL],
    timeout_seconds=90,
    on_interrupt="retry",
)
def notify_by_slack(inputs: SlackMessage, run: Run) -> Result:
    """Posts `inputs.message`."""
    try:
        text = _chat.templated(run, plain(inputs.message))
    except SettingError as error:
        return Failure(str(error))
    return _chat.post(run, URL, {"text": text}, _HOSTS)


def plain(text: str) -> str:
    """`text` without control sequences of Slack: it cannot mention a channel or hide a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
